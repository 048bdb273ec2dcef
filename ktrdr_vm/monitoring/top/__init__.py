"""`ktrdr-vm top`: what all streams do now, on a terminal or as plain lines.

A stream is an instance of this host, or a request at a place. What is shown of a guest is escaped.
"""
