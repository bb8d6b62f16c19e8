#!/bin/bash
# Runs a command against a Slurm cluster of one node that lives as long as it does: run.sh COMMAND...
# Where the cluster cannot start it says why, runs nothing and succeeds.
set -u
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d /tmp/mscale-slurm.XXXXXX)
trap '"$here/cluster.sh" stop "$dir"; rm -rf "$dir"' EXIT
conf=$("$here/cluster.sh" start "$dir")
code=$?
if [ "$code" = 3 ]; then echo "tests against Slurm not run: the reason is above" >&2; exit 0; fi
[ "$code" = 0 ] || exit "$code"
SLURM_CONF=$conf "$@"
