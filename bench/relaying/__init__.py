"""What `bench_relay.py` is made of: plain datagrams, first packets, tunnels."""
