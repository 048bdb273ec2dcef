"""Programs that are sent to the guest's python3. Each stands alone: only the standard library, as old as Python 3.8."""
