"""A small AT Protocol network on loopback, generated from a seed: a PLC directory and several PDSs.

The demo, the tests and the benchmarks run on it. It writes its repositories with code of its own (DAG-CBOR,
tree, CAR, signatures) and imports nothing of the stages that read them, so that generator and verifier cannot
share a mistake. What it serves is known: `SandboxNetwork.truth` says what a crawler must find.
"""
