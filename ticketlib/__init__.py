"""From a company's support tickets to a gpt-oss model that routes them, with NVIDIA NeMo.

The data's way through the package; a module imports only modules above it:

=============  ====================================================================================
`paths`        names every file of a run once; resolves inputs; writes atomically
`logs`         sends the chatter of libraries to a file
`tickets`      CSV of any helpdesk -> clean DataFrame, plus a report of what was changed
`splits`       paraphrase groups; stratified, grouped, reproducible split
`prompts`      ticket -> prompt and answer text; answer -> queue
`jsonl`        the training, validation and test files that NeMo reads
`profiles`     tiny, gpt-oss-20b, gpt-oss-120b: settings as data; download of the base
`cpu`          what Megatron-Core needs patched where there is no CUDA
`gptoss`       the corrected NeMo config, model, importer and exporter for gpt-oss
`parity`       the proof that two checkpoints compute the same
`training`     the recipe, running it, the loss history
`export`       merge in fp32 and export
`scoring`      tickets -> label probabilities; free generation for comparison
`metrics`      accuracy, macro-F1 with confidence intervals, baselines
`plots`        figures that return their Axes
`widgets`      ipywidgets around functions that also work without them
=============  ====================================================================================

Importing the package imports none of them: `from ticketlib import tickets` costs pandas, not NeMo.
"""

__version__ = "0.1.0"
