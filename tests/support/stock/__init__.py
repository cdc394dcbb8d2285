"""What ComfyUI's own nodes make of Lance: `host` runs graphs, `graphs` builds them, `survey` sorts what happened,
`verdicts` says what is known, `page` writes it down."""
