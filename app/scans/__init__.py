"""Untrusted bytes in, a `Scan` out, or a precise refusal.

Sizes are checked before anything is parsed: a header that promises more than the upload holds,
or an archive that would unpack to gigabytes, is refused by arithmetic alone.
"""

from app.scans.isolated import INLINE, Body, Readers, Stored
from app.scans.parcel import ScanForm
from app.scans.reader import Attachments, Limits, Upload, read_scan
from app.scans.scan import Scan, ScanRefused, ScanView

__all__ = [
    "INLINE",
    "Attachments",
    "Body",
    "Limits",
    "Readers",
    "Scan",
    "ScanForm",
    "ScanRefused",
    "ScanView",
    "Stored",
    "Upload",
    "read_scan",
]
