"""A DOUBLE of Logstash 9.5: it runs a pipeline file as Logstash does, as far as knockmap uses it, and refuses the rest.

    language       configuration text → tree                  settings, command_line   logstash.yml, flags
    options        what each plugin takes                      runner, jvm              the program itself
    event          fields, %{...}                              pipeline                 inputs → queue → filters → outputs
    conditions     if … else if …                              queues                   persistent queue, dead letter queue
    grok           patterns by Oniguruma                       api                      the API on port 9600
    filters, geoip                                             file_input, outputs, elasticsearch

Errors:  ConfigurationError   what Logstash itself refuses, with its words
         └── NotDoubled       what Logstash takes and this double cannot do
"""

from __future__ import annotations

from pathlib import Path

VERSION = Path(__file__).with_name("VERSION").read_text().strip()


class ConfigurationError(Exception):
    """Logstash would not take it either."""


class NotDoubled(ConfigurationError):
    """Logstash may take it, but this double does not know it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the Logstash double does not know {what}")
