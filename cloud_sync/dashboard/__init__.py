"""The dashboard: live alerts, one alert whole, devices, one's own account. NiceGUI inside the cloud's FastAPI app.

Every page asks who is there before it shows anything, again at each poll and each action. The pages need nothing
from the internet. Media come from the API, which checks the same login.
"""

from __future__ import annotations

from cloud_sync.dashboard.routes import mount

__all__ = ["mount"]
