# /// script
# requires-python = ">=3.11"
# dependencies = ["craft_trl[executors] @ git+https://github.com/ORG/craft_trl"]
# ///
"""
Draws and scores candidates in a Hugging Face Job of one GPU. The prompts are made before, on your machine, and what is drawn is
in the bucket after every batch.

```bash
craft expand --config recipes/sdxl/candidates.yaml
hf buckets cp runs/sdxl/prompts/groups.jsonl hf://buckets/ORG/BUCKET/sdxl/groups.jsonl
hf jobs uv run --flavor a100-large --timeout 12h --secrets HF_TOKEN examples/jobs/generate.py hf://buckets/ORG/BUCKET/sdxl
craft generate --config recipes/sdxl/candidates.yaml --shared_dir hf://buckets/ORG/BUCKET/sdxl
```

The last command fetches what is there. A Job that has ended goes on where it was when it is submitted again. With `TASKS TASK`
behind the folder it does one of several shares, in as many Jobs; `craft generate --executor jobs` starts such Jobs by itself.
"""

import sys

from craft_trl.cli.main import main
from craft_trl.planning.recipes import find_recipes


shared_dir, tasks, task = [*sys.argv[1:], "1", "0"][:3]
recipe = str(find_recipes("recipes/sdxl") / "candidates.yaml")
raise SystemExit(main(["generate", "--config", recipe, "--tasks", tasks, "--task", task, "--shared_dir", shared_dir]))
