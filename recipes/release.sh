#!/usr/bin/env bash
# Build the models of the package from packages of Debian and PyPI alone: training data, training, evaluation, cards.
#
#     recipes/release.sh ROOT [SIDE]
#
# ROOT gets about 15 GB. SIDE is valid unless given; the test side is evaluated once. After an interruption, run it again: it continues.
set -euo pipefail

root=$1 side=${2:-valid} here=$(cd "$(dirname "$0")" && pwd)
open=$here/../benchmarks/open
say() { printf '\n== %s\n' "$*"; }

say "Training data and tasks"
python "$open/build.py" "$root"
patchifier prepare "$root/pretraining.jsonl"            --out "$root/cache-all"        --config "$here/base.json"
patchifier prepare "$root/pretraining-recordings.jsonl" --out "$root/cache-recordings" --config "$here/base.json"
python "$open/check_leaks.py" "$root"

say "Training: base and the paper's recipe (about five hours of two cores), and base on recordings alone"
for seed in 0 1 2; do
    patchifier pretrain "$root/cache-all" --out "$root/runs/base-$seed"  --config "$here/base.json"       --pretrain.seed $seed --resume
done
patchifier pretrain "$root/cache-all" --out "$root/runs/paper-0" --config "$here/base-paper.json" --resume
patchifier pretrain "$root/cache-recordings" --out "$root/runs/base-recordings" --config "$here/base.json" --resume

say "Evaluation: $side side, beside features of other programs in ROOT/outsiders/NAME/FAMILY (benchmarks/outsiders)"
seeds() { echo "$root/runs/$1-0/model+$root/runs/$1-1/model+$root/runs/$1-2/model"; }
rows="patchifier-base=$(seeds base),patchifier-paper=$root/runs/paper-0/model,recordings-only model=$root/runs/base-recordings/model"
rows+=",random weights of base=random:$root/runs/base-0/model,random weights of paper=random:$root/runs/paper-0/model,mel-stats,mfcc,handcrafted"
for other in "$root"/outsiders/*/; do
    [ -d "$other" ] && rows+=",$(basename "$other")=features:$root/outsiders/$(basename "$other")/%FAMILY%"
done
python "$open/judge.py" "$root" --side "$side" --out "$root/judged-$side" --encoders "$rows"

say "Masked patches: $side side; the model of the paper's recipe beside references without one"
python "$open/reconstruction.py" "$root" --model "$root/runs/paper-0/model" --side "$side" --out "$root/masked-$side"

say "Into the package: the first seeds"
python "$open/release.py" "$root/runs/base-0/model"  patchifier-base  --root "$root" --scores "$root/judged-$side"
python "$open/release.py" "$root/runs/paper-0/model" patchifier-paper --root "$root" --scores "$root/judged-$side" --reconstruction "$root/masked-$side"
