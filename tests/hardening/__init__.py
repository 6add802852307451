"""Trust: what killed, hindered and hostile circumstances must not do."""
