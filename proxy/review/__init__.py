"""The audit log as web pages: read by people, written by no one."""
