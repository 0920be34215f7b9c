"""One page that shows a run as it happens, and lets you play with every stage's model.

python -m tools.playground --workdir=runs/quickstart
python -m tools.playground --workdir=runs/quickstart --beside=runs/other --port=8001

Opens at http://127.0.0.1:8000: the stages of the run live, its data, next tokens, answers side by
side, the reward model, curves of several runs, scaling laws. It loads nothing from elsewhere, and
works while the run is still training. The models are behind OpenAI's interface too, at /v1; the
options are those of tools/serve.py, and so is who may ask (docs/serving.md).
"""

import argparse
import sys

from tools import serve


def main(argv: list[str] | None = None) -> int:
  """Serves until it is interrupted; exit code 2 and one line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  serve.add_options(parser)
  parser.add_argument(
    "--beside", action="append", default=[], help="another run, whose curves are shown beside"
  )
  return serve.run(parser.parse_args(argv), with_page=True)


if __name__ == "__main__":
  sys.exit(main())
