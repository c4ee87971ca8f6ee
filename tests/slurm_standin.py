"""Commands of Slurm for tests: sbatch runs the script at once, on this machine.

`install(folder)` writes them into `folder/bin`. What sbatch was given is kept in `folder`:
`submitted` (a line of arguments a job), `17.sh`, `17.out`, and `17.exit` once the job has ended.
"""

import sys
from pathlib import Path

JOB = "17"

SBATCH = f"""#!/bin/sh
for script; do :; done
echo "$@" >>{{folder}}/submitted
rm -f {{folder}}/{JOB}.exit
cp "$script" {{folder}}/{JOB}.sh
export SLURM_JOB_ID={JOB} SLURM_JOB_NODELIST=localhost SLURM_NNODES=1 SLURM_NODEID=0
(bash "$script" >{{folder}}/{JOB}.out 2>&1 </dev/null; echo $? >{{folder}}/{JOB}.exit) \\
    >/dev/null 2>&1 &
echo {JOB}
"""

# Its options have a value in the next word, but for those with "="
SRUN = """#!{python}
import os, subprocess, sys
if os.environ.get("SRUN_FAILS"):
    sys.exit(1)
words, options = sys.argv[1:], {{}}
while words[0].startswith("-"):
    word = words.pop(0)
    if "=" not in word:
        options[word] = words.pop(0)
os.chdir(options.get("--chdir", "."))
output = options.get("--output")
file = open(output.replace("%j", "17"), "w") if output else None
sys.exit(subprocess.run(words, stdout=file, stderr=file).returncode)
"""

SQUEUE = f"""#!/bin/sh
[ -e {{folder}}/{JOB}.sh ] && [ ! -e {{folder}}/{JOB}.exit ] && echo {JOB}
exit 0
"""

SACCT = f"""#!/bin/sh
case "$(cat {{folder}}/{JOB}.exit 2>/dev/null)" in
    "") state=RUNNING ;;
    0) state=COMPLETED ;;
    *) state=FAILED ;;
esac
printf 'JobID|JobName|State\\n{JOB}|job.train|%s\\n' $state
"""

SCONTROL = "#!/bin/sh\necho localhost\n"


def install(folder: Path) -> Path:
    """Give the folder to put on PATH."""
    scripts = {"sbatch": SBATCH, "srun": SRUN, "squeue": SQUEUE, "sacct": SACCT}
    commands = folder / "bin"
    commands.mkdir()
    for name, text in (scripts | {"scontrol": SCONTROL}).items():
        (commands / name).write_text(text.format(folder=folder, python=sys.executable))
        (commands / name).chmod(0o755)
    return commands
