"""Untrusted bytes in, a `Scan` out, or a precise refusal.

Sizes are checked before anything is parsed: a header that promises more than the upload holds,
or an archive that would unpack to gigabytes, is refused by arithmetic alone.
"""

from app.scans.isolated import PackedScan, Readers
from app.scans.reader import Attachments, Limits, Upload, read_scan
from app.scans.scan import Scan, ScanRefused, ScanView

__all__ = [
    "Attachments",
    "Limits",
    "PackedScan",
    "Readers",
    "Scan",
    "ScanRefused",
    "ScanView",
    "Upload",
    "read_scan",
]
