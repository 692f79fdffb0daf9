"""docs/guarantees.md: the promises, the tests that attack them, and what the attacks came to."""

from collections.abc import Mapping
from typing import Any

PROMISES: dict[int, tuple[str, str]] = {
    1: (
        "Every random draw depends on the seed, the step and the position in the batch alone. "
        "A run that is killed and resumed ends with the bits of one that was not.",
        "tests/train/test_pretrain.py tests/train/test_finetune.py",
    ),
    2: (
        "bf16 is used on a processor only after it has passed a test of the model's own "
        "operations. What fails the test stays in float32.",
        "tests/train/test_precision.py",
    ),
    3: (
        "A clip has the same embedding alone and in a batch, with any number of threads, and "
        "today as when the golden vectors were stored.",
        "tests/test_guarantees.py tests/test_embed.py tests/test_weights.py",
    ),
    4: (
        "Memory does not grow with the length of a file. Files shorter than a patch and silence "
        "are embedded.",
        "tests/test_audio.py tests/test_embed.py",
    ),
    5: (
        "No audio is lost silently: a file gives all that it holds, or is named with the reason. "
        "A bad file costs itself and no other, whatever its decoder does.",
        "tests/test_containers.py tests/test_decode.py tests/test_sandbox.py tests/test_cache.py "
        "tests/library/test_job.py",
    ),
    6: (
        "A file is there whole or not at all, whenever a process is killed or the disk is full. "
        "A second job in a folder is refused.",
        "tests/test_cache.py tests/test_checkpoint.py tests/cli/test_disk.py tests/test_windows.py",
    ),
    7: (
        "Nothing is downloaded unless the user asks for it. What is downloaded is checked, and no "
        "archive writes outside its folder.",
        "tests/datasets/test_download.py",
    ),
    8: (
        "Two processes take the steps of one. A worker that is killed changes nothing in the "
        "result.",
        "tests/train/test_distributed.py",
    ),
    9: (
        "A table has the rows of an undisturbed job, none lost and none twice, whenever the job "
        "is killed.",
        "tests/library/test_job.py tests/integrations/test_ray.py",
    ),
    10: (
        "A stranger's model, cache, table or manifest is checked before it is used. It runs no "
        "code and takes no more memory than its size allows.",
        "tests/test_checkpoint.py tests/test_cache.py tests/library/test_table.py "
        "tests/datasets/test_labels.py",
    ),
    11: (
        "The server answers its own page and programs with the token, sends no file but its own, "
        "and goes on whatever is sent to it.",
        "tests/app/test_security.py tests/app/test_sound.py tests/app/test_uploads.py",
    ),
}
"""Of each guarantee of DESIGN.md, section 7: the promise, and the files of tests that attack it."""

FAULTS: dict[str, str] = {
    "mp3 of variable bit rate without a Xing frame": "test_mp3_of_variable_rate_without_a_tag_is_read_to_its_end "
    "test_mp3_whose_first_frames_have_a_high_rate_is_read_to_its_end "
    "test_mp3_whose_first_frames_have_a_low_rate_is_no_truncated_one",
    "zeros between an ID3 tag and the first frame": "test_junk_between_a_tag_and_the_first_frame_is_passed_over",
    "FLAC from a pipe, 0 samples in its header": "test_flac_that_states_no_length_is_read_to_its_end",
    "Ogg of several links": "test_links_of_an_ogg_are_read_one_after_the_other",
    "Opus without an end-of-stream flag": "test_opus_without_an_end_flag_gives_what_is_there",
    "healthy Opus that libsndfile does not finish": "test_where_libsndfile_stops_pyav_goes_on",
    "wav of a recorder that was cut off": "test_wav_that_states_too_little_is_read_to_the_end_of_the_file",
    "warnings of a decoder": "test_warnings_of_a_decoder_are_notes_about_its_file",
    "a named pipe as audio": "test_pipe_is_refused_and_not_waited_for",
    "a list of files, or audio of games, named .m4a": "test_list_of_files_named_m4a_is_refused "
    "test_format_of_games_named_m4a_is_refused",
    "class numbers as labels": "test_class_numbers_in_jsonl_are_classes_where_the_metric_is_accuracy "
    "test_strings_and_booleans_in_jsonl_are_names",
    "decimal commas, a bar at the end of tags": "test_decimal_commas_are_numbers_where_no_comma_is_between_the_columns "
    "test_a_bar_at_the_end_names_no_empty_tag",
    "few groups, own folds": "test_three_groups_are_three_folds_each_tested_once "
    "test_two_folds_of_the_data_set_are_kept_and_validation_is_taken_from_the_other",
    "several segments of one file": "test_parts_of_one_file_have_ids_of_path_and_start_and_are_one_group",
    "None as a label, two Unicode forms of one label": "test_words_for_missing_values_are_no_label_and_no_group "
    "test_two_unicode_forms_of_a_name_are_one_class_one_tag_and_one_group "
    "test_a_tag_of_test_clips_alone_is_named_with_its_fold",
    "Windows: fsync, renames over open files": "test_files_and_folders_are_replaced_and_nothing_is_left_beside_them "
    "test_the_emulation_refuses_what_windows_refuses",
    "disk full while a checkpoint is written": "test_no_room_for_a_checkpoint_is_one_line_and_the_run_goes_on "
    "test_a_full_disk_is_one_line_and_the_same_command_goes_on",
    "pictures and sounds into a new folder": "test_reconstruct_draws_and_can_be_heard",
    "messages about skipped files": "test_a_skipped_file_is_one_line_with_its_path_once_and_each_remedy_is_there_once "
    "test_prepare_names_each_skipped_file_once_and_ends_with_count_and_list "
    "test_links_to_missing_files_are_named_by_their_own_path",
    "scikit-learn's own checks, bad files": "test_scikit_learns_own_checks_pass test_what_cannot_be_embedded_is_named",
    "half precision": "test_transformers_classes_read_half_precision_into_float32 "
    "test_half_precision_comes_out_as_float32",
    "transformers' auto classes": "test_importing_the_module_is_enough_for_the_auto_classes "
    "test_the_three_auto_classes_read_a_saved_folder",
    "a run's page: figures of other clips": "test_a_score_in_demo_and_run_is_told_once_and_borrows_no_split_of_other_clips",
    "random weights of the model's architecture": "test_random_takes_a_seed_or_the_architecture_of_a_model",
    "minutes without progress": "test_every_step_of_an_encoder_shows_progress "
    "test_progress_of_the_papers_head_counts_rates_and_names_rate_step_and_loss",
    "resuming with a changed field": "test_a_run_is_not_overwritten_nor_resumed_with_other_settings_clips_or_weights "
    "test_another_model_other_settings_and_other_clips_are_refused_with_what_differs",
    "extras that cannot be resolved": "test_every_extra_is_pinned_to_versions_that_go_together",
    "a folder of save_pretrained": "test_a_folder_of_save_pretrained_is_refused_with_what_makes_a_model_folder_of_it",
    "a mistyped command": "test_a_mistyped_command_suggests_the_nearest test_a_wrong_command_line_is_one_message",
    "ONNX beside torch": "test_a_tone_of_16_bits_agrees_as_far_as_log_mels_in_float32_do",
    "HTML, zeros, text, an image or a program named .flac": "test_whatever_is_named_flac_costs_that_file_alone",
    "hours of silence in a small file": "test_longer_file_than_the_limit_is_refused_and_its_parts_are_read "
    "test_length_that_cannot_be_counted_is_limited_while_it_is_decoded",
    "a config that asks for too much memory": "test_a_config_is_refused_before_memory_is_taken_for_what_it_asks_for "
    "test_a_model_of_the_largest_sizes_costs_no_memory_until_its_weights_are_known",
    "weights of infinity or NaN": "test_weights_that_are_not_finite_are_refused_by_name "
    "test_vectors_that_are_not_finite_are_not_written",
    "a cache that was tampered with": "test_an_index_with_wrong_values_is_refused_when_it_is_opened "
    "test_a_shard_of_the_wrong_form_is_refused_and_prepared_again test_a_torn_index_is_refused "
    "test_an_index_that_was_changed_is_told",
    "pipes and devices in place of files": "test_a_pipe_or_a_device_is_neither_a_manifest_nor_a_label_file "
    "test_a_pipe_or_a_device_in_a_model_folder_is_refused test_a_pipe_or_a_device_in_a_cache_is_refused "
    "test_a_pipe_in_an_index_is_refused_and_not_waited_for "
    "test_interrupted_job_ends_processes_that_hang",
    "a kill while a folder is replaced": "test_a_kill_while_a_folder_is_replaced_costs_nothing_and_leaves_nothing "
    "test_what_a_killed_process_left_behind_does_not_matter",
    "a file that takes too much memory": "test_a_file_that_takes_more_memory_than_there_is_is_named "
    "test_each_bad_file_is_named_with_its_reason_and_costs_no_other",
    "wrong bits in a Parquet table": "test_one_wrong_bit_is_seen_or_changes_nothing "
    "test_every_wrong_bit_of_a_footer_is_seen_or_changes_no_row",
    "NaN in a cache": "test_bad_numbers_in_the_data_are_no_fault_of_the_processor",
    "closed pipes, foreign output, formulas, long fields, signals": "test_a_reader_that_has_left_is_no_error "
    "test_what_libraries_and_other_processes_print_is_not_in_the_json "
    "test_text_that_a_spreadsheet_would_compute_is_guarded_and_read_back "
    "test_a_cell_above_the_limit_of_csv_is_refused_with_its_row "
    "test_a_second_change_of_an_index_at_once_is_refused test_sigterm_saves_the_work_as_ctrl_c_does "
    "test_a_file_above_the_limit_of_sizes_is_one_line",
    "half a character in a path": "test_a_label_or_group_with_a_lone_surrogate_is_refused_with_its_row "
    "test_name_that_no_label_file_can_have_is_refused",
    "audio of eight channels": "test_eight_channels_and_more_are_read",
    "an extreme rate in an AIFF, a tag before an Amiga sample, samples named .raw": "test_a_rate_that_no_number_holds_costs_that_file_alone "
    "test_a_tag_before_a_format_that_libsndfile_alone_reads_is_left_out "
    "test_a_file_named_raw_is_judged_by_its_content",
    "a small table of billions of rows": "test_rows_that_take_far_more_memory_than_their_file_are_refused",
    "a damaged index": "test_a_damaged_index_is_refused",
}
"""Situations in which this package once failed, and the tests that hold the right answer."""

INTRODUCTION = """# Guarantees and the attacks on them

`make torture` writes this page. It attacks the guarantees of [DESIGN.md](../DESIGN.md), section 7,
for an hour on two cores: it changes files, kills processes and fills disks, and counts after which
of these faults a guarantee still held. `make test` runs a short form. An attack that cannot run on
a machine is printed as not run, and the command fails.
"""


def _attack(row: Mapping[str, Any]) -> str:
    name = f"| {row['attack']} | "
    if "not_run" in row:
        return name + f"not run: {row['not_run']} | | | | | |"
    numbers = [row["inputs"], row["injected"], row["survived"], len(row["lost"])]
    counted = " | ".join(f"{number:,}" for number in numbers)
    return f"{name}{counted} | {row['date']}, seed {row['seed']} | {row['machine']} |"


def _guarantee(number: int, rows: list[Mapping[str, Any]]) -> str:
    promise, files = PROMISES[number]
    tests = ", ".join(f"`{name}`" for name in files.split())
    lines = [f"### {number}", "", promise, "", f"Tests: {tests}", ""]
    own = [row for row in rows if row["guarantee"] == number]
    if own:
        lines += ["| attack | inputs | faults | survived | lost | last run | machine |"]
        lines += ["|---|---:|---:|---:|---:|---|---|", *map(_attack, own), ""]
    return "\n".join(lines)


def page(rows: list[Mapping[str, Any]]) -> str:
    """The page with the last result of each attack."""
    parts = [INTRODUCTION, "## The guarantees\n"]
    parts += [_guarantee(number, rows) for number in PROMISES]
    table = [f"| {what} | {', '.join(f'`{name}`' for name in tests.split())} |"
             for what, tests in FAULTS.items()]  # fmt: skip
    parts += ["## Known faults and their tests\n", "| situation | tests |\n|---|---|"]
    return "\n".join([*parts, *table]) + "\n"
