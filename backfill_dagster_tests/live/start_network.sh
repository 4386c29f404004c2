#!/usr/bin/env bash
# Starts the official PLC directory and two official PDSs on loopback, seeded, from the npm packages.
#   start_network.sh SHARED_REALPDS WORK_FOLDER [flags of network.mjs]
# Installs into WORK_FOLDER at the first call (needs node and the npm registry; some minutes), writes
# WORK_FOLDER/manifest.json, prints READY {...} and stays up until it is stopped.
set -euo pipefail
source=$1 work=$2
shift 2
mkdir -p "$work"
cp -n "$source"/install.sh "$source"/network.mjs "$work"/
chmod u+wx "$work"/install.sh
[ -d "$work/n20/node_modules" ] || (cd "$work" && ./install.sh n20 >&2)
cd "$work"
exec node network.mjs --plc-modern --manifest "$work/manifest.json" "$@"
