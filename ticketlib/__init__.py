"""From a company's support tickets to a gpt-oss model that routes them, with NVIDIA NeMo.

Begin with `tickets`, `splits`, `rendering`, `training`, `export`, `scoring` and `routing`; the
others serve them. The data's way through the package; a module imports only modules above it:

=============  ====================================================================================
`paths`        names every file of a run once; resolves inputs; writes atomically
`parameters`   the types of a notebook's parameters, checked
`checksums`    a folder's files with their SHA-256, and whether they still fit
`history`      the losses of all attempts of a training, joined
`logs`         sends the chatter of libraries to a file
`intervals`    how sure a figure is: bootstrap by paraphrase group, Wilson's interval
`plots`        figures of training and results that return their Axes
`encoding`     which encoding a text file has
`table`        what a file holds: text, with the line of each record
`delimited`    CSV and its relatives -> table
`readers`      CSV, JSON Lines, Parquet, .zip -> table
`cleaning`     repairs of a ticket's text: HTML, literal line breaks, control characters, quotes
`report`       what was changed in an export, and what looks wrong in it
`columns`      which columns are meant, with suggestions
`tickets`      any helpdesk's export -> clean DataFrame, plus the report
`neighbors`    which tickets are in similar words
`splits`       paraphrase groups; stratified, grouped, reproducible split
`explore`      missing fields, telling words, labels that disagree with their neighbors
`prompts`      ticket -> prompt and answer text; answer -> queue
`rendering`    the same in tokens: counted, cut to fit, as records
`jsonl`        the training, validation and test files that NeMo reads
`profiles`     tiny, gpt-oss-20b, gpt-oss-120b: settings as data; download of the base
`checkpoint`   Hugging Face folders of gpt-oss, checked, read and written tensor by tensor
`mxfp4`        experts' weights in 4 bits, as OpenAI releases them
`packs`        which tokens of a row of several tickets see each other
`sizing`       what a training needs of the machine, checked, and how long it takes
`scoring`      tickets -> label probabilities; free generation for comparison
`te_layers`    Transformer Engine's layers with packed rows, for GPUs
`convert`      weights by transformers' names to NeMo's and back
`cpu`          what Megatron-Core needs patched where there is no CUDA
`gptoss`       the corrected NeMo config, model, importer and exporter for gpt-oss
`adapter`      the trained adapter in transformers' terms: merged, or as PEFT's folder
`inference`    NeMo's and transformers' models loaded for comparison, and their logits
`parity`       the proof that two models compute the same
`resume`       whole checkpoints of a training, verified; the best of them
`callbacks`    what is called during training: checkpoints, resumption, progress
`run_settings` what a run was trained with; changes are refused
`executors`    where a training runs: this process, several, a Slurm job
`training`     the recipe, and running it
`predictions`  true queues and probabilities as numbers, checked
`metrics`      accuracy, macro-F1 and the rest, overall, by queue, language, length
`baselines`    the largest queue, TF-IDF; what a random split flatters
`comparison`   whether one model beats another, in words
`calibration`  temperature scaling, reliability
`handoff`      what a threshold routes automatically, and how much of it right
`thresholds`   the threshold that meets a target accuracy
`template`     the base's chat template frozen to the training's prompt
`card`         the model card of an exported folder
`export`       full weights, the adapter alone, MXFP4
`routing`      a ticket's queue from an exported run
`runs`         several runs side by side
`publish`      an executed notebook as a report without code
`ticket_plots` figures of tickets
`widgets`      ipywidgets around functions that also work without them
=============  ====================================================================================

Importing the package imports none of them: `from ticketlib import tickets` costs pandas, not NeMo.
"""

__version__ = "0.1.0"
