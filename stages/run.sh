# Run a stage with a Python that has the project's packages, whichever environment DVC runs in
# (.venv/bin/dvc, pipx, Homebrew, Anaconda, VS Code): that of .venv, unless another one is activated.
python=python
[ -z "$VIRTUAL_ENV" ] && [ -x .venv/bin/python ] && python=.venv/bin/python
check='import sys
from importlib.util import find_spec
names = "PIL keras matplotlib numpy onnx onnxruntime pandas psutil pydantic sklearn tensorflow wcwidth yaml"
missing = [name for name in names.split() if not find_spec(name)]
if sys.version_info < (3, 11):
    sys.exit("%s is older than Python 3.11" % sys.executable)
sys.exit("%s has no %s" % (sys.executable, ", ".join(missing)) if missing else 0)'
reason="no python on PATH"
if command -v $python > /dev/null; then
	$python -c "$check" 2> /dev/null && exec $python -m "stages.$1"
	reason=$($python -c "$check" 2>&1 | tail -n 1)
fi
echo "$1: $reason; run: . .venv/bin/activate (make repro creates it)" >&2
exit 1
