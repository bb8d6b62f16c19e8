#!/bin/bash
# Installs the wheel into an empty environment and uses it from an empty folder: run.sh PYTHON
#
# Asserts that the wheel holds every tracked file of the packages, and that a user who has nothing but the wheel gets
# from generated text to report.html: no module, template, table or gin file is read from this checkout.
# The wheel is built from a copy of the tracked and new files, so a stale build/ folder cannot hide a missing one.
set -euo pipefail
python=${1:?an interpreter with pip and venv}
python=$(realpath -s "$(command -v "$python")")
here=$(cd "$(dirname "$0")" && pwd)
checkout=$(cd "$here/../.." && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/mscale-wheel.XXXXXX")
trap 'rm -rf "$dir"' EXIT
unset PYTHONPATH
export JAX_PLATFORMS=cpu PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "test-wheel: $* ($SECONDS s)" >&2; }

mkdir "$dir/source" "$dir/empty"
git -C "$checkout" ls-files -z --cached --others --exclude-standard --deduplicate >"$dir/listed"
(cd "$checkout" && while IFS= read -r -d '' file; do if [ -f "$file" ]; then printf '%s\0' "$file"; fi; done <"$dir/listed" \
  | tar --null --files-from=- -c) | tar -x -C "$dir/source"

say "building the wheel"
"$python" -m pip wheel -q --no-deps --wheel-dir "$dir/dist" "$dir/source"
wheel=$(echo "$dir"/dist/mscale-*.whl)
"$python" "$here/check.py" contents "$wheel" "$dir/source"

say "installing it into an empty environment"
"$python" -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -q -c "$checkout/constraints.txt" "$wheel[analysis]"
packages=$("$dir/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# Every interpreter of this environment writes down which data files of the project it opens.
cp "$here/opened_files.py" "$packages/"
echo "import opened_files" >"$packages/opened_files.pth"
export MSCALE_TEST_OPENED=$dir/opened MSCALE_TEST_FOLDERS=$checkout:$dir/source:$packages
PATH=$dir/venv/bin:$PATH
cd "$dir/empty"

say "running it"
mscale doctor
mscale corpus corpus --languages aa,ab --families 1 --bytes 300000
mscale pack corpus store --processes 1
mscale train --gin_file=gin/train/pretrain.gin --gin.SCALE='"nano0"' --gin.MIXTURE='"aa+ab"' --gin.STORE='"store"' \
  --gin.STEPS=20 --gin.WORKDIR='"run"' --gin.PROGRESS=False
test -s run/observations.jsonl
cp "$here/study.gin" .
mscale sweep run study.gin --store store --root study
mscale fit study
mscale report study/laws.json
for file in study/observations.parquet study/laws.json study/report.html; do
  test -s "$file" || { echo "$file is missing or empty" >&2; exit 1; }
done
"$python" "$here/check.py" opened "$MSCALE_TEST_OPENED" "$packages"
say "passed"
