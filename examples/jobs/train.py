# /// script
# requires-python = ">=3.11"
# dependencies = ["craft_trl @ git+https://github.com/ORG/craft_trl"]
# ///
"""
Trains in a Hugging Face Job, on a dataset that `craft push` has put on the Hub. The bucket keeps the checkpoints: the files of a
Job are gone with it.

```bash
hf jobs uv run --flavor a100-large --timeout 6h --secrets HF_TOKEN -v hf://buckets/ORG/BUCKET:/data \
    examples/jobs/train.py ORG/DATASET /data/sdxl
```

Submitted again it goes on from the last whole checkpoint.
"""

import sys

from craft_trl.cli.main import main
from craft_trl.planning.recipes import find_recipes


dataset, folder = sys.argv[1:]
recipe = str(find_recipes("recipes/sdxl") / "craft_lora.yaml")
raise SystemExit(main(["train", "--config", recipe, "--dataset_name", dataset, "--output_dir", f"{folder}/model"]))
