"""A local folder on a remote file system."""

from mscale.remote import connect


def upload(folder, url):
    """Copies the files of ``folder`` below ``url``."""
    system, root = connect(url)
    system.put(f"{folder}/", f"{root}/", recursive=True)
