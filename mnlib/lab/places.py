"""Where ledgers, records and checkpoints lie: in the checkout, or in and beside the package.

In a checkout all is in its ``data/``. A wheel carries a copy of it inside the package, which is
read only: what ``mnlib run`` records then goes to a folder of the user's.
"""

from pathlib import Path

import platformdirs

__all__ = ["CHECKOUT", "FOLDER", "READ", "WRITTEN"]

_ROOT = Path(__file__).resolve().parents[2]

#: the checkout that this code lies in, None where it is installed without one
CHECKOUT = _ROOT if (_ROOT / "data" / "claims.toml").is_file() else None

#: what came with the code: ledgers, ``runs`` and ``checkpoints``
FOLDER = CHECKOUT / "data" if CHECKOUT else Path(__file__).with_name("recorded")

#: where new runs and checkpoints go
WRITTEN = FOLDER if CHECKOUT else platformdirs.user_data_path("mnlib")

#: where runs and checkpoints are looked for, in this order
READ = tuple(dict.fromkeys((WRITTEN, FOLDER)))
