"""Who may enter, and when: counting on one event loop, no I/O."""
