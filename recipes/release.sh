#!/usr/bin/env bash
# The models that come with the package, from the packages of Debian and PyPI alone: what they hear, their training, their judgement, their cards.
#
#     recipes/release.sh ROOT [SIDE]
#
# ROOT gets about 15 GB. SIDE is valid unless given; the test side is looked at once. Run it again after an interruption and it goes on where it was.
set -euo pipefail

root=$1 side=${2:-valid} here=$(cd "$(dirname "$0")" && pwd)
open=$here/../benchmarks/open
say() { printf '\n== %s\n' "$*"; }

say "What may be heard, and what is judged"
python "$open/build.py" "$root"
patchifier prepare "$root/pretraining.jsonl"            --out "$root/cache-all"        --config "$here/base.json"
patchifier prepare "$root/pretraining-recordings.jsonl" --out "$root/cache-recordings" --config "$here/base.json"

say "Training: the model, its twin that heard recordings alone, and the paper's recipe on the same music"
patchifier pretrain "$root/cache-all"        --out "$root/runs/base"            --config "$here/base.json"       --resume
patchifier pretrain "$root/cache-recordings" --out "$root/runs/base-recordings" --config "$here/base.json"       --resume
patchifier pretrain "$root/cache-all"        --out "$root/runs/paper"           --config "$here/base-paper.json" --resume

say "Judgement: $side side"
base=$root/runs/base/model paper=$root/runs/paper/model
python "$open/judge.py" "$root" --side "$side" --out "$root/judged-$side" \
    --encoders "$base,$root/runs/base-recordings/model,$paper,random:$base,random:$paper,mel-stats,mfcc,handcrafted"

say "Into the package"
python "$open/release.py" "$base"  patchifier-base  --root "$root" --scores "$root/judged-$side"
python "$open/release.py" "$paper" patchifier-paper --root "$root" --scores "$root/judged-$side"
