#!/usr/bin/env bash
# "Spectrograms are sequences of patches", section by section, on the paper's own data. docs/paper.md says how to read the result.
#
#     recipes/paper.sh DATA OUT [CONFIG]
#
# DATA holds the folders mtat, gtzan and emomusic ('patchifier check NAME --root DATA/NAME' says whether they are complete).
# CONFIG is recipes/paper.json unless given. Run it again after an interruption and it goes on where it was.
set -euo pipefail

data=$1 out=$2 here=$(cd "$(dirname "$0")" && pwd)
config=${3:-$here/paper.json}
seeds=5
mkdir -p "$out"

# Exit code 1 means: done, but some files were skipped, each named in the cache's skipped.csv. What is known to be broken is no reason to stop.
patchifier() { command patchifier "$@" || [ $? -eq 1 ]; }
say() { printf '\n== %s\n' "$*"; }

say "4.3 Data: log-mels of MagnaTagATune, GTZAN in both readings of its split, EmoMusic"
patchifier prepare mtat:paper16k      --root "$data/mtat"     --out "$out/cache/mtat"           --config "$config"
patchifier prepare gtzan              --root "$data/gtzan"    --out "$out/cache/gtzan"          --config "$config"
patchifier prepare gtzan:folds        --root "$data/gtzan"    --out "$out/cache/gtzan-folds"    --config "$config"
patchifier prepare emomusic           --root "$data/emomusic" --out "$out/cache/emomusic"       --config "$config"
for task in gtzan emomusic; do
    patchifier leaks "$out/cache/mtat" "$out/cache/$task" --out "$out/leaks-$task.csv"
done

say "4.4 Pre-training: stage I, stage II"
patchifier pretrain "$out/cache/mtat" --out "$out/pretrain" --config "$config" --resume
model=$out/pretrain/model

say "4.5 Table 1 and Figure 2: four ways of fine-tuning, $seeds seeds, at the paper's rate"
for task in gtzan emomusic; do
    patchifier finetune "$model" "$out/cache/$task" --out "$out/figure-2-$task" --method all --config "$config" --finetune.n_seeds $seeds --resume
done
patchifier finetune "$model" "$out/cache/gtzan-folds" --out "$out/figure-2-gtzan-folds" --method linear-probe --config "$config" \
    --finetune.folds all --finetune.n_seeds $seeds --resume

say "4.5 Beside it: the linear probe at the rate that validates best of 1e-5, 1e-4, 1e-3"
for task in gtzan emomusic; do
    patchifier finetune "$model" "$out/cache/$task" --out "$out/best-rate-$task" --method linear-probe --config "$config" \
        --finetune.learning_rates '[1e-5, 1e-4, 1e-3]' --finetune.n_seeds $seeds --resume
done

say "Beside the paper: frozen embeddings against hand-made features and random weights, by the same probe"
for task in gtzan gtzan-folds emomusic; do
    patchifier compare "$out/cache/$task" --encoders "$model,random,mfcc,mel-stats" --probe linear --out "$out/compare-$task"
done

say "Report"
patchifier report "$out" --out "$out/report"
