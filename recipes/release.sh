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
train_base() {  # CACHE NAME: 3,600 steps, then 4,600 from there, each with a rate that rises and falls
    patchifier pretrain "$root/$1" --out "$root/runs/$2-first" --config "$here/base.json" --pretrain.stage_two.steps 3600 --resume
    patchifier pretrain "$root/$1" --out "$root/runs/$2" --init "$root/runs/$2-first/model" --config "$here/base.json" --pretrain.seed 1 --resume
}
train_base cache-all        base
train_base cache-recordings base-recordings
patchifier pretrain "$root/cache-all" --out "$root/runs/paper" --config "$here/base-paper.json" --resume

say "Judgement: $side side"
base=$root/runs/base/model paper=$root/runs/paper/model
python "$open/judge.py" "$root" --side "$side" --out "$root/judged-$side" \
    --encoders "$base,$root/runs/base-recordings/model,$paper,random:$base,random:$paper,mel-stats,mfcc,handcrafted"

say "Into the package"
python "$open/release.py" "$base"  patchifier-base  --root "$root" --scores "$root/judged-$side" --before "$root/runs/base-first/model"
python "$open/release.py" "$paper" patchifier-paper --root "$root" --scores "$root/judged-$side"
