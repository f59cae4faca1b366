"""The last step of every upload: staged bytes become a blob of a repository."""

from __future__ import annotations

from supervisor.model.oci import Digest, RepositoryName
from supervisor.model.registry import BlobInfo
from supervisor.registry.blobs import BlobStore
from supervisor.registry.facts import Facts
from supervisor.registry.uploads import Upload


async def finish_upload(
    facts: Facts, store: BlobStore, repository: RepositoryName, upload: Upload, digest: Digest
) -> BlobInfo:
    """Make what `upload` holds the blob `digest` of `repository`: durable when this returns.

    Raises DigestMismatch, and then nothing is stored. A crash or a cancellation on the way leaves
    the upload as it was, or a file that nothing refers to, which the next collection removes.
    """
    await upload.verify(digest)
    async with store.keeping(digest):
        stamp = await store.adopt(upload.path, upload.size_bytes, digest)
        blob = BlobInfo(digest, upload.size_bytes, stamp=stamp)
        upload.reset()  # its file is gone, whatever happens now
        await facts.link_blob(repository, blob, upload.id)
    return blob
