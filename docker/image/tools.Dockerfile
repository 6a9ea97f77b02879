# What works on a box's network from beside it: the kernel log relay and the attacker.
ARG BASE
FROM ${BASE}
RUN apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    python3 iproute2 nftables iptables && apt-get clean
COPY relay.py /usr/local/lib/box/
ENTRYPOINT ["python3", "-u", "/usr/local/lib/box/relay.py"]
