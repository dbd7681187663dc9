# SPDX-License-Identifier: MIT
"""Training of GroupedMixer models, as ``groupedmixer train`` does it; docs/training.md tells how.

.. code-block:: none

    Settings --> train() --.--> data: crops of folders and tar files
                           |--> TrainedModel (with --final at last as files have it) --> loss
                           |--> optimizer, schedule, moving average
                           |--> checkpoint, validation, report
                           '--> weights file

Needs ``pip install groupedmixer[train]``; names are imported from their modules, so that the
command line can describe its options without torch.
"""
