"""Write docs/files.md: every key of the two files, from the models themselves.

Usage: python tools/make_files_doc.py [--check]

With --check nothing is written; exit 1 when the page is not what it should be.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hansa.spec.schema import federation_tables, plugin_tables, site_tables

PAGE = Path(__file__).parents[1] / "docs" / "files.md"

TEMPLATE = """\
<!-- Made by tools/make_files_doc.py from the models in src/hansa/spec; do not edit. -->

# The two files

A federation has two kinds of files with two kinds of owners. `federation.yaml` belongs
to the experimenter: which model, which algorithm, how long, with whom. `site.yaml`
belongs to a facility: what may run there, over which data, with what limits. The
experimenter can ask only for what the site file allows.

Both are YAML 1.2, read strictly:

- `1e-4` is a number; `12:30:00`, `2026-01-31`, `yes` and `no` are text.
- A key written twice is an error, and so is an unknown key; the message names the line
  and the nearest right key. All mistakes of a file are shown at once.
- A duration is a number of seconds, or `"90m"`, `"1h30m"`, `"1:30:00"` (hours, minutes,
  seconds), `"2-0:0:0"` (days first).
- Relative paths are taken from the folder of the file that they stand in.
- "Text or section" means that `strategy: fedavg` is short for
  `strategy: {name: fedavg}` (`{type: ...}` for gateways, movers and schedulers).

`hansa check FILE` reads a file and says what is wrong with it.

## federation.yaml

```yaml
name: smol-chem
seed: 7
model: {trainer: causal-lm, source: tiny-llama, dtype: float32}
task: chem-instruct
strategy: {name: fedavg, quorum: 2, deadline: 2h}
stop: {rounds: 8, wall_clock: "1-00:00:00", target: {metric: eval_loss, below: 0.5}}

defaults:                      # beneath each facility
  job: {nodes: 2, time: "1:00:00"}
  work: {steps: 30, batch: 6, lr: 1e-4}

facilities:
  polaris:
    profile: alcf/polaris
    gateway:
      type: ssh
      host: polaris.alcf.anl.gov
      command: /lus/eagle/projects/PROJ/hansa/venv/bin/hansa
      site: /lus/eagle/projects/PROJ/hansa/site.yaml
    mover: {type: rsync, host: polaris.alcf.anl.gov}
    job: {queue: preemptable, account: PROJ}
    data: property_prediction
  frontier:
    profile: olcf/frontier
    gateway:
      type: ssh
      host: frontier.olcf.ornl.gov
      command: /lustre/orion/PROJ/proj-shared/hansa/env/bin/hansa
      site: /lustre/orion/PROJ/proj-shared/hansa/site.yaml
    mover: {type: rsync, host: frontier.olcf.ornl.gov}
    job: {account: PROJ}
    data: molecule_description
    work: {batch: 8}           # steps and lr come from the defaults
```

What a facility does not say comes from `defaults`, then from its profile (only `job`)
and its preset (only `simulation`), then from the defaults below. Mappings are merged
key by key; lists and values replace. A gateway, mover or simulated queue of another
type replaces the whole section.

`simulation`, of the federation and of each facility, is for `hansa simulate` and
`hansa compare` ([simulator](simulator.md)); a real run does not read it.

Any key can be changed from the command line, in the order written:

| override | does |
|---|---|
| `stop.rounds=3` | sets a key; the value is YAML |
| `strategy={name: fedavg, quorum: 2}` | sets a whole section (quote it for the shell) |
| `+stop.node_hours=10` | adds a key that must not be there, or an item to a list |
| `~defaults.job.queue` | removes a key |

The run directory keeps the completed plan as `federation.lock.yaml`, which loads
without this file.

{federation}
## site.yaml

```yaml
name: polaris
scheduler: {type: pbs, chunk: system=polaris}
mailbox: /lus/eagle/projects/PROJ/hansa/mailbox   # login and compute nodes both see it
state: /lus/eagle/projects/PROJ/hansa/state       # the facility's own notes
tasks:
  chem-instruct:
    data: /lus/eagle/projects/PROJ/hansa/data/smolinstruct
    splits: [property_prediction]   # the only group that may be trained on
limits: {nodes: 10, time: "6:00:00", jobs_in_queue: 4}
node: {gpus: 4, gpu_memory: 40GB, ranks: 4}
environment:
  directives: ["-l filesystems=home:eagle"]
  setup: [module use /soft/modulefiles, module load conda, conda activate base]
  launch: mpiexec -n {ranks} --ppn {ranks_per_node} --depth=8 --cpu-bind depth
  variables: {OMP_NUM_THREADS: 8}
```

Here `~` and `$NAME` are expanded in paths, on the login node.

{site}
## Options of the plug-ins

Each plug-in brings its own keys: a strategy beside `strategy.name`, a gateway, mover or
scheduler beside its `type`, a task under `task.options`, a trainer under
`model.options` and in each facility's `work`, beside `steps`.

{plugins}"""


def page() -> str:
    """Return the text that the page should have."""
    parts = {
        "{federation}": federation_tables(),
        "{site}": site_tables(),
        "{plugins}": plugin_tables(),
    }
    text = TEMPLATE
    for slot, tables in parts.items():
        text = text.replace(f"\n{slot}", f"\n{tables}")
    return text.rstrip() + "\n"


def main(arguments: list[str]) -> int:
    """Write or check the page; return the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: make_files_doc.py [--check]", file=sys.stderr)
        return 2
    text = page()
    if not arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(
        "docs/files.md is stale; run: python tools/make_files_doc.py", file=sys.stderr
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
