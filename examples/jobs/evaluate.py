# /// script
# requires-python = ">=3.11"
# dependencies = ["craft_trl[executors] @ git+https://github.com/ORG/craft_trl"]
# ///
"""
Compares a trained adapter with its base model in a Hugging Face Job. Images, results and report are in the bucket.

```bash
hf jobs uv run --flavor a100-large --timeout 6h --secrets HF_TOKEN -v hf://buckets/ORG/BUCKET:/data \
    examples/jobs/evaluate.py ORG/ADAPTER /data/sdxl
```
"""

import sys

from craft_trl.cli.main import main
from craft_trl.planning.recipes import find_recipes


adapter, folder = sys.argv[1:]
recipe = str(find_recipes("recipes/sdxl") / "evaluate.yaml")
models = ["base=stabilityai/stable-diffusion-xl-base-1.0", f"craft=lora:{adapter}"]
raise SystemExit(main(["evaluate", "--config", recipe, "--models", *models, "--output_dir", f"{folder}/evaluation"]))
