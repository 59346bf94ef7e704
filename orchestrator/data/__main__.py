"""`python -m orchestrator.data`: converts datasets to Arrow files, verifies and lists them.

    prepare NAME [--source PATH|URL] [--data-dir FOLDER|URL] [--image-size N] [--as NAME]
    verify NAME
    list

If `--data-dir` is a URL, a dataset is prepared in this machine's cache and copied to the URL,
from which each host of a cluster fetches it once. A prepared dataset is a folder
`<data-dir>/<name>` with `manifest.json` and one Arrow file per split. The folder appears in one
step, whole; its presence is the only state.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from orchestrator import command
from orchestrator.data.known_datasets import DEFAULT_IMAGE_SIZE_PX, KNOWN
from orchestrator.errors import UsageError
from orchestrator.redaction import redacted
from orchestrator.storage.arguments import add_data_dir
from orchestrator.storage.paths import DataLocation, data_location


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.data", description="Prepare, verify and list datasets."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    make = commands.add_parser("prepare", help="convert a dataset to Arrow files for training")
    names = f"{', '.join(KNOWN)}; the last is for your own images"
    make.add_argument("kind", metavar="NAME", help=names)
    make.add_argument(
        "--source",
        metavar="PATH|URL",
        help="archive, extracted folder or URL (default: the official archive in the data "
        "folder, else a download)",
    )
    make.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="for imagefolder: crop images to their centre square and resize them to N x N pixels "
        f"(default: {DEFAULT_IMAGE_SIZE_PX})",
    )
    make.add_argument(
        "--as", dest="name", metavar="NAME", help="name of the result (default: the dataset's)"
    )
    check = commands.add_parser("verify", help="compare a prepared dataset with its manifest")
    check.add_argument("name", metavar="NAME", help="name of the prepared dataset")
    show = commands.add_parser("list", help="show prepared and known datasets")
    for each in (make, check, show):
        add_data_dir(each.add_argument)
        command.add_verbose(each.add_argument)
    return parser


def _prepare(arguments: argparse.Namespace, place: DataLocation) -> None:
    from orchestrator.data import prepare, prepared, share

    folder = prepare.prepare(
        arguments.kind,
        data_dir=place.folder,
        source=arguments.source,
        image_size_px=arguments.image_size,
        name=arguments.name,
    )
    where = str(folder)
    if place.address is not None:
        share.publish(folder, place.address)
        where = f"{redacted(place.address).rstrip('/')}/{folder.name}"
    found = prepared.read_prepared(folder)
    manifest, skipped = found.manifest, found.skipped_files
    images = ", ".join(f"{manifest.images[split]:,} {split}" for split in ("train", "test"))
    classes = f"{len(manifest.class_names):,} classes"
    print(f"{where}: {images} images of {classes}, fingerprint {manifest.fingerprint}.")
    if found.test_split:
        print(f"The test split is {found.test_split}.")
    for note in found.notes:
        print(note)
    if skipped:
        noun = "file" if skipped == 1 else "files"
        first = found.first_skipped
        print(f"Skipped {skipped:,} {noun} (hidden, text or data); the first is {first!r}.")


def _print_list(place: DataLocation) -> None:
    """Print a table of prepared datasets, and of those that can be prepared without a source."""
    from rich.console import Console
    from rich.table import Table

    from orchestrator.data.prepared import prepared, prepared_at

    table = Table("dataset", "images", "classes", "image size", "fingerprint", "on disk", "from")
    found = prepared(place.folder) if place.address is None else prepared_at(place.address)
    for item in found:
        manifest = item.manifest
        images = " + ".join(f"{number:,} {split}" for split, number in manifest.images.items())
        size = f"{manifest.image_size_px} px"
        row = (item.folder.name, images, str(len(manifest.class_names)), size, manifest.fingerprint)
        table.add_row(*row, f"{item.disk_bytes / 2**20:,.1f} MiB", item.source)
    names = {item.folder.name for item in found}
    for known in KNOWN.values():
        if known.name not in names and not known.needs_source:
            origin = known.address or known.summary
            table.add_row(known.name, "not prepared", "", "", "", "", origin)
    # A pipe has no width; do not cut what it carries.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _run(arguments: argparse.Namespace) -> int:
    from orchestrator.data import share
    from orchestrator.data.prepared import verify
    from trainables.data.dataset import DatasetError

    place = data_location(arguments.data_dir)
    try:
        if arguments.command == "prepare":
            command.output_is_optional()
            _prepare(arguments, place)
        elif arguments.command == "list":
            _print_list(place)
        else:
            folder = place.folder / arguments.name
            if place.address is not None:
                share.fetch(place.address, folder)
            problems = verify(arguments.name, place.folder)
            print("\n".join(problems) or f"{folder} matches its manifest.")
            return 1 if problems else 0
    except DatasetError as error:
        raise UsageError(str(error)) from error
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 (verify), 2 (usage), 130 (Ctrl+C)."""
    kept = "Interrupted. The downloaded part is kept; the same command resumes the download."
    return command.run(_parser(), _run, argv, interrupted=kept)


if __name__ == "__main__":
    sys.exit(main())
