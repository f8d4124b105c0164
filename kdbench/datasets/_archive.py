"""torchvision's one door: archives of datasets are downloaded through it. Not a dataset."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from urllib.error import HTTPError

from kdbench.errors import DataError


def download_and_extract(url: str, md5: str, folder: Path, holds: str) -> None:
    """Download an archive, check it, unpack it, and put the folder that it `holds` into `folder`: all of it, or nothing.

    Raises:
        DataError: the archive cannot be had, is not the right one, or does not hold the folder.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    work = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{holds}-", dir=folder))
        download_and_extract_archive(url, str(work), md5=md5)
        if not (work / holds).is_dir():
            raise DataError(f"{url} does not hold a folder {holds}")
        os.rename(work / holds, folder / holds)
    except DataError:
        raise
    except Exception as error:  # the network, the server, the archive or the disk
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise DataError(
            f"{url} could not be downloaded ({type(error).__name__}: {error}). Download it where there is a network, and unpack it as "
            f"{(folder / holds).absolute()}"
        ) from error
    finally:
        if work:
            shutil.rmtree(work, ignore_errors=True)
