#!/usr/bin/env bash
# Build the models of the package from packages of Debian and PyPI alone: training data, training, evaluation, cards.
#
#     recipes/release.sh ROOT [SIDE]
#
# ROOT gets about 20 GB. SIDE is valid unless given; the test side is evaluated once. After an interruption, run it again: it continues.
# `pip install --no-deps musicnn==0.1.0` comes first: its weights are a teacher of patchifier-base.
set -euo pipefail

root=$1 side=${2:-valid} here=$(cd "$(dirname "$0")" && pwd)
open=$here/../benchmarks/open outsiders=$here/../benchmarks/outsiders
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
say() { printf '\n== %s\n' "$*"; }

say "Training data and tasks"
python "$open/build.py" "$root"
python "$open/synthetic.py" "$root" --clips 3000
patchifier prepare "$root/pretraining.jsonl"            --out "$root/cache-all"        --config "$here/synthetic.json"
patchifier prepare "$root/pretraining-recordings.jsonl" --out "$root/cache-recordings" --config "$here/synthetic.json"
python "$open/check_leaks.py" "$root"

say "The teacher's vectors of recordings, and copies of recordings with the same vectors"
python "$outsiders/from_musicnn.py" "$root/cache-recordings" --out "$root/musicnn" --model MSD_musicnn --layers penultimate+mean_pool+max_pool --windows 4
python "$open/coded.py" "$root" --features "$root/musicnn"
patchifier prepare "$root/pretraining-coded.jsonl"      --out "$root/cache-coded"      --config "$here/synthetic.json"

say "Training: base in two runs of one recipe, and the paper's recipe (about five hours of two cores)"
known=(--config "$here/synthetic.json" --pretrain.note_labels "$root/labels" --pretrain.teacher_features "$root/musicnn" --resume)
patchifier pretrain "$root/cache-coded" --out "$root/runs/base-0" "${known[@]}"
patchifier pretrain "$root/cache-coded" --out "$root/runs/base-1" "${known[@]}" --init "$root/runs/base-0/model"
patchifier pretrain "$root/cache-all" --out "$root/runs/paper-0" --config "$here/base-paper.json" --resume

say "Evaluation: $side side, beside features of other programs in ROOT/outsiders/NAME/FAMILY (benchmarks/outsiders)"
rows="patchifier-base=$root/runs/base-1/model,patchifier-paper=$root/runs/paper-0/model"
rows+=",random weights of base=random:$root/runs/base-1/model,random weights of paper=random:$root/runs/paper-0/model,mel-stats,mfcc,handcrafted"
for other in "$root"/outsiders/*/; do
    [ -d "$other" ] && rows+=",$(basename "$other")=features:$root/outsiders/$(basename "$other")/%FAMILY%"
done
python "$open/judge.py" "$root" --side "$side" --out "$root/judged-$side" --encoders "$rows"

say "Masked patches: $side side; the model of the paper's recipe beside references without one"
python "$open/reconstruction.py" "$root" --model "$root/runs/paper-0/model" --side "$side" --out "$root/masked-$side"

say "Into the package, with the vectors that tests compare, and heads on the vectors of base"
python "$open/release.py" "$root/runs/base-1/model"  patchifier-base  --before "$root/runs/base-0/model" --root "$root" --scores "$root/judged-$side"
python "$open/release.py" "$root/runs/paper-0/model" patchifier-paper --root "$root" --scores "$root/judged-$side" --reconstruction "$root/masked-$side"
python "$here/../tests/golden/make.py" patchifier-base patchifier-paper
python "$open/train_heads.py" "$root" --random
