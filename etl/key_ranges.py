"""The former name of `key_buckets`, for `target`."""

from etl.key_buckets import bury_extra, purge_tombstones

__all__ = ["bury_extra", "purge_tombstones"]
