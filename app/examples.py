"""Examples of what goes over the wire, for the API's document; a test holds them against the contract."""

from __future__ import annotations

from typing import Any

ID = "019a1c5e8f3a4be1d7c2a9f06b35e814"
HERE = f"/v1/completions/{ID}"

COMPLETION: dict[str, Any] = {
    "id": ID,
    "status": "running",
    "options": {"model": "chairs", "pose": "upright", "resolution": 128},
    "phase": "fit",
    "step": 31,
    "steps": 90,
    "residual": 0.0121,
    "progress": 0.34,
    "preview": 1,
    "queue_position": None,
    "attempt": 1,
    "warnings": ["3 of 18000 points left out: not finite."],
    "created_at": "2026-11-25T12:00:00.000000Z",
    "started_at": "2026-11-25T12:00:00.210000Z",
    "ended_at": None,
    "report": None,
    "error": None,
    "webhook": None,
    "links": {
        "self": HERE,
        "events": f"{HERE}/events",
        "scan": f"{HERE}/scan",
        "preview": f"{HERE}/preview",
        "mesh": f"{HERE}/mesh",
        "report": f"{HERE}/report",
        "latent": f"{HERE}/latent",
        "picture": f"{HERE}/preview.png",
        "cancel": f"{HERE}/cancel",
    },
}
COMPLETION_LIST: dict[str, Any] = {"completions": [COMPLETION], "cursor": ID}
LATENT: dict[str, Any] = {
    "model": "chairs",
    "checkpoint_digest": "5f0c1f3b4d8e77a1d2c96c1b8b4f2f6f4c3e0a9d1b7e8f60a2b3c4d5e6f70819",
    "code": [0.12, -0.43, 0.08],
    "scan_to_canonical": [[1.9, 0, 0, 0.1], [0, 1.9, 0, -0.7], [0, 0, 1.9, 0.3], [0, 0, 0, 1]],
}
PROBLEM: dict[str, Any] = {
    "type": "about:blank",
    "title": "Unprocessable Entity",
    "status": 422,
    "detail": "The scan has 12 usable points; a completion needs at least 64.",
    "instance": "/v1/completions",
    "code": "too_few_points",
    "request_id": "9f1c2b7e5d8a4c0b8e6f3a2d1c0b9a87",
    "errors": [],
}
MODEL: dict[str, Any] = {"name": "chairs", "description": "Chairs, 48 designs.", "category": "chair"}
MODEL_LIST: dict[str, Any] = {"models": [MODEL]}

INTERPOLATION_OPTIONS: dict[str, Any] = {
    "model": "chairs",
    "start": {"completion": ID},
    "end": {"shape": "kenney_chair"},
    "count": 8,
    "resolution": 96,
}
INTERPOLATION: dict[str, Any] = {
    "id": "019a1c60a1b24c5d8e9f0a1b2c3d4e5f",
    "status": "succeeded",
    "options": INTERPOLATION_OPTIONS,
    "progress": 1.0,
    "queue_position": None,
    "created_at": "2026-11-25T12:01:00Z",
    "started_at": "2026-11-25T12:01:01Z",
    "ended_at": "2026-11-25T12:01:04Z",
    "error": None,
    "links": {
        "self": "/v1/interpolations/019a1c60a1b24c5d8e9f0a1b2c3d4e5f",
        "events": "/v1/interpolations/019a1c60a1b24c5d8e9f0a1b2c3d4e5f/events",
        "mesh": "/v1/interpolations/019a1c60a1b24c5d8e9f0a1b2c3d4e5f/mesh",
        "cancel": "/v1/interpolations/019a1c60a1b24c5d8e9f0a1b2c3d4e5f/cancel",
    },
}
INTERPOLATION_LIST: dict[str, Any] = {"interpolations": [INTERPOLATION], "cursor": None}
