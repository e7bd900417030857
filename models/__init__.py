"""Training side of Tectum: data, networks, export, bundles. Never imported by the device or the cloud.

The cloud runs it as a process (`python -m models …`) and reads back a bundle.
"""
