"""Writes the Logstash double's GeoIP databases, made up in MaxMind's format: `python -m tests.doubles.logstash.geoip_databases`.

They stand where the package has them; a test says that they are what this program writes. A network of docker/box/sources.txt
is in the capital of its country there, and belongs to an autonomous system of a number reserved for documentation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.unit import mmdb

HERE = Path(__file__).parent
TARGET = HERE / "root" / "usr" / "share" / "logstash" / "vendor" / "geoip"
SOURCES = HERE.parents[2] / "docker" / "box" / "sources.txt"
BUILT = 1_795_000_000
FIRST_NUMBER = 64496

# ISO code: name, continent, capital, degrees north and east, time zone.
COUNTRIES = {
    "AR": ("Argentina", "SA", "Buenos Aires", -34.6, -58.4, "America/Argentina/Buenos_Aires"),
    "AU": ("Australia", "OC", "Canberra", -35.3, 149.1, "Australia/Sydney"),
    "BD": ("Bangladesh", "AS", "Dhaka", 23.8, 90.4, "Asia/Dhaka"),
    "BR": ("Brazil", "SA", "Brasília", -15.8, -47.9, "America/Sao_Paulo"),
    "CA": ("Canada", "NA", "Ottawa", 45.4, -75.7, "America/Toronto"),
    "CH": ("Switzerland", "EU", "Bern", 46.9, 7.4, "Europe/Zurich"),
    "CL": ("Chile", "SA", "Santiago", -33.4, -70.7, "America/Santiago"),
    "CN": ("China", "AS", "Beijing", 39.9, 116.4, "Asia/Shanghai"),
    "CO": ("Colombia", "SA", "Bogotá", 4.7, -74.1, "America/Bogota"),
    "DE": ("Germany", "EU", "Berlin", 52.5, 13.4, "Europe/Berlin"),
    "EG": ("Egypt", "AF", "Cairo", 30.0, 31.2, "Africa/Cairo"),
    "ES": ("Spain", "EU", "Madrid", 40.4, -3.7, "Europe/Madrid"),
    "FI": ("Finland", "EU", "Helsinki", 60.2, 24.9, "Europe/Helsinki"),
    "FR": ("France", "EU", "Paris", 48.9, 2.4, "Europe/Paris"),
    "GB": ("United Kingdom", "EU", "London", 51.5, -0.1, "Europe/London"),
    "GH": ("Ghana", "AF", "Accra", 5.6, -0.2, "Africa/Accra"),
    "HK": ("Hong Kong", "AS", "Hong Kong", 22.3, 114.2, "Asia/Hong_Kong"),
    "ID": ("Indonesia", "AS", "Jakarta", -6.2, 106.8, "Asia/Jakarta"),
    "IE": ("Ireland", "EU", "Dublin", 53.3, -6.3, "Europe/Dublin"),
    "IN": ("India", "AS", "New Delhi", 28.6, 77.2, "Asia/Kolkata"),
    "IS": ("Iceland", "EU", "Reykjavik", 64.1, -21.9, "Atlantic/Reykjavik"),
    "IT": ("Italy", "EU", "Rome", 41.9, 12.5, "Europe/Rome"),
    "JP": ("Japan", "AS", "Tokyo", 35.7, 139.7, "Asia/Tokyo"),
    "KE": ("Kenya", "AF", "Nairobi", -1.3, 36.8, "Africa/Nairobi"),
    "KR": ("South Korea", "AS", "Seoul", 37.6, 127.0, "Asia/Seoul"),
    "MA": ("Morocco", "AF", "Rabat", 34.0, -6.8, "Africa/Casablanca"),
    "MT": ("Malta", "EU", "Valletta", 35.9, 14.5, "Europe/Malta"),
    "MX": ("Mexico", "NA", "Mexico City", 19.4, -99.1, "America/Mexico_City"),
    "NG": ("Nigeria", "AF", "Abuja", 9.1, 7.4, "Africa/Lagos"),
    "NL": ("The Netherlands", "EU", "Amsterdam", 52.4, 4.9, "Europe/Amsterdam"),
    "NZ": ("New Zealand", "OC", "Wellington", -41.3, 174.8, "Pacific/Auckland"),
    "PE": ("Peru", "SA", "Lima", -12.0, -77.0, "America/Lima"),
    "PK": ("Pakistan", "AS", "Islamabad", 33.7, 73.1, "Asia/Karachi"),
    "PL": ("Poland", "EU", "Warsaw", 52.2, 21.0, "Europe/Warsaw"),
    "RO": ("Romania", "EU", "Bucharest", 44.4, 26.1, "Europe/Bucharest"),
    "RU": ("Russia", "EU", "Moscow", 55.8, 37.6, "Europe/Moscow"),
    "SE": ("Sweden", "EU", "Stockholm", 59.3, 18.1, "Europe/Stockholm"),
    "SG": ("Singapore", "AS", "Singapore", 1.3, 103.9, "Asia/Singapore"),
    "TH": ("Thailand", "AS", "Bangkok", 13.8, 100.5, "Asia/Bangkok"),
    "TR": ("Türkiye", "AS", "Ankara", 39.9, 32.9, "Europe/Istanbul"),
    "TW": ("Taiwan", "AS", "Taipei", 25.0, 121.6, "Asia/Taipei"),
    "UA": ("Ukraine", "EU", "Kyiv", 50.4, 30.5, "Europe/Kyiv"),
    "US": ("United States", "NA", "Washington", 38.9, -77.0, "America/New_York"),
    "VN": ("Vietnam", "AS", "Hanoi", 21.0, 105.8, "Asia/Ho_Chi_Minh"),
    "ZA": ("South Africa", "AF", "Pretoria", -25.7, 28.2, "Africa/Johannesburg"),
}


def named(text: str) -> dict[str, Any]:
    return {"names": {"en": text}}


def city(code: str) -> dict[str, Any]:
    """A record as MaxMind's: nested, with a list of regions."""
    name, continent, capital, north, east, zone = COUNTRIES[code]
    region = named(f"{capital} region") | {"iso_code": "X"}
    return {
        "city": named(capital),
        "continent": {"code": continent},
        "country": named(name) | {"iso_code": code},
        "location": {"latitude": north, "longitude": east, "time_zone": zone},
        "subdivisions": bytes([1, 11 - 7]) + mmdb.encode(region),
    }


def system(code: str) -> dict[str, Any]:
    number = FIRST_NUMBER + sorted(COUNTRIES).index(code) % 16
    return {
        "autonomous_system_number": bytes([6 << 5 | 4]) + number.to_bytes(4, "big"),
        "autonomous_system_organization": f"Made-up network of {code}",
    }


def networks() -> dict[str, str]:
    """Network → ISO code."""
    rows = [line.split() for line in SOURCES.read_text().splitlines() if not line.startswith("#")]
    return {f"{prefix}0/{112 if ':' in prefix else 24}": code for prefix, code in rows}


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = networks()
    cities = {network: city(code) for network, code in found.items()}
    systems = {network: system(code) for network, code in found.items()}
    mmdb.write(folder / "GeoLite2-City.mmdb", cities, kind="Double-GeoLite2-City", built=BUILT)
    mmdb.write(folder / "GeoLite2-ASN.mmdb", systems, kind="Double-GeoLite2-ASN", built=BUILT)


if __name__ == "__main__":
    write(TARGET)
