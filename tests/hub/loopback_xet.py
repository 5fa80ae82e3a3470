"""The formats in which a client with Xet uploads large files, as far as the Hub of the tests reads them.

Specified at https://huggingface.co/docs/xet. A file is cut into chunks, chunks are packed into xorbs, and shards say of
which chunks of which xorbs files consist.
"""
import struct
from typing import Dict, Iterator, List

_ENTRY = 48  # size of a shard's header and of each of its entries
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30


def xorb_chunks(xorb: bytes) -> List[bytes]:
    """The chunks of a xorb. They must not be compressed: `HF_XET_XORB_COMPRESSION_POLICY=none` is for that."""
    chunks, offset = [], 0
    while offset < len(xorb) and xorb[offset] == 0:  # a footer begins with another byte than a chunk's version
        size, scheme = int.from_bytes(xorb[offset + 1:offset + 4], 'little'), xorb[offset + 4]
        if scheme:
            raise ValueError('A xorb is compressed')
        offset += 8
        chunks.append(xorb[offset:offset + size])
        offset += size
    return chunks


def shard_files(shard: bytes, xorbs: Dict[str, List[bytes]]) -> Iterator[bytes]:
    """The content of each file of a shard.

    Args:
        shard: The shard.
        xorbs: Chunks of each xorb that has been uploaded.
    """
    offset = _ENTRY
    while shard[offset:offset + 32] != b'\xff' * 32:
        flags, count = struct.unpack_from('<II', shard, offset + 32)
        parts = []
        for i in range(1, count + 1):
            *words, _, _, first, end = struct.unpack_from('<4Q4I', shard, offset + i * _ENTRY)
            parts += xorbs[''.join(f'{word:016x}' for word in words)][first:end]
        yield b''.join(parts)
        offset += _ENTRY * (1 + count * (2 if flags & _WITH_VERIFICATION else 1) + bool(flags & _WITH_METADATA))
