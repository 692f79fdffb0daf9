"""beets plugin: which music of the library sounds alike.

In beets' configuration::

    plugins: patchifier
    patchifier:
        table: patchifier.parquet   # in the folder of the configuration, or an absolute path
        model: ''                   # patchifier-base
        workers: 0                  # one process for each core

``beet patchifier`` embeds the library, or brings its table up to date. ``beet similar QUERY`` lists
what sounds like the items that match. ``beet sound-duplicates`` lists pairs of items that sound
nearly the same; beets has a plugin ``duplicates`` of its own, so this command has another name.
Neither files nor fields are changed, but by ``beet patchifier --fields``.
"""

import os
from collections.abc import Callable
from optparse import Values

from beets import config as beets_config
from beets import ui
from beets.library import Item, Library
from beets.plugins import BeetsPlugin

from patchifier.cli.library import embedded_text
from patchifier.cli.progress import progress
from patchifier.config import RequestError
from patchifier.io import skipped_lines

Command = Callable[[Library, Values, list[str]], None]


class PatchifierPlugin(BeetsPlugin):  # type: ignore[misc]
    """Commands ``patchifier``, ``similar`` and ``sound-duplicates``."""

    def __init__(self) -> None:
        super().__init__()
        self.config.add({"table": "patchifier.parquet", "model": "", "workers": 0})

    def commands(self) -> list[ui.Subcommand]:
        """Return the commands of the plugin."""
        embed = ui.Subcommand("patchifier", help="embed the library for similarity search")
        embed.parser.add_option(
            "-F",
            "--fields",
            action="store_true",
            help="estimate bpm and initial_key of matching items that have none, in the library",
        )
        embed.parser.add_option(
            "-w", "--write", action="store_true", help="with --fields: write them to files too"
        )
        embed.func = _reported(self._embed)
        similar = ui.Subcommand("similar", help="list what sounds like the items of a query")
        similar.parser.add_option("-n", "--count", type="int", default=10, help="number of items")
        similar.parser.add_format_option(target="item")
        similar.func = _reported(self._similar)
        pairs = ui.Subcommand("sound-duplicates", help="list pairs that sound nearly the same")
        pairs.parser.add_option(
            "-t", "--threshold", type="float", default=0.95, help="least cosine of a pair"
        )
        pairs.parser.add_format_option(target="item")
        pairs.func = _reported(self._duplicates)
        return [embed, similar, pairs]

    @property
    def _table(self) -> str:
        place = os.path.expanduser(self.config["table"].as_str())
        return place if "://" in place else os.path.join(beets_config.config_dir(), place)

    def _embed(self, library: Library, options: Values, words: list[str]) -> None:
        from patchifier.integrations import beets

        if options.write and not options.fields:
            raise RequestError("--write writes the fields of --fields: give both.")
        if options.fields:
            self._estimate(library, words, write=bool(options.write))
            return
        if words:
            raise RequestError("the whole library is embedded: drop the query, or add --fields.")
        done = beets.embed(
            library.items(),
            self._table,
            embedder=self.config["model"].as_str() or None,
            workers=self.config["workers"].get(int) or None,
            progress=progress("files"),
        )
        ui.print_("\n".join([embedded_text(done), *skipped_lines(done.skipped)]))

    def _estimate(self, library: Library, words: list[str], *, write: bool) -> None:
        """Store tempo and key of items that have none, and show what changes."""
        from patchifier.embed import load

        model = load()  # estimates come from its spectrogram, so the configured one does not matter
        for item in library.items(words):
            try:
                if not item["bpm"] and (bpm := model.tempo(item.filepath).bpm):
                    item["bpm"] = round(bpm)
                if not item["initial_key"] and (key := model.key(item.filepath).name):
                    item["initial_key"] = key
            except (RequestError, OSError) as error:
                ui.print_(f"skipped: {error}")
                continue
            if ui.show_model_changes(item):
                item.store()
                if write:
                    item.try_write()

    def _similar(self, library: Library, options: Values, words: list[str]) -> None:
        from patchifier.integrations import beets

        seeds = list(library.items(words)) if words else []
        found = beets.similar(library.items(), seeds, self._table, count=options.count)
        for one in found:
            ui.print_(f"{one.similarity:.4f}  {_shown(one.item)}")

    def _duplicates(self, library: Library, options: Values, words: list[str]) -> None:
        from patchifier.integrations import beets

        found = beets.duplicates(library.items(words), self._table, threshold=options.threshold)
        for pair in found:
            ui.print_(f"{pair.similarity:.4f}  {_shown(pair.first)}  ==  {_shown(pair.second)}")


def _shown(item: Item) -> str:
    return format(item, beets_config["format_item"].as_str())


def _reported(command: Command) -> Command:
    """Turn a request that cannot be met into beets' own error, which has no traceback."""

    def run(library: Library, options: Values, words: list[str]) -> None:
        try:
            command(library, options, words)
        except RequestError as error:
            raise ui.UserError(str(error)) from error

    return run
