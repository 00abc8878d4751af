"""Files on disk: run folders, finished stages of a run, directions in this library's and other formats, provenance.

Everything is written atomically, and read with errors that name the file.
Never runs a model; nothing but tensors needs torch.

Hands out:
`file_sha256`, `remembered_sha256`, `write_file`, `as_direction`, `direction_bytes`, `read_direction`,
`read_direction_evaluations`, `read_published_tensor`, `write_control_vector`, `write_direction`, `ModelProvenance`,
`PromptsProvenance`, `Provenance`, `library_versions`, `provenance_of`, `Header`, `read_header`, `read_result`,
`read_tensors`, `replacing_folder`, `write_run`, `StageCache`, `Stages`, `open_stages`, `from_json`, `to_json`,
`to_plain`, `result_file`, `stored_json`, `ActivationStore`, `estimated_bytes`, `Place`, `TableKey`, `StoreSlice`,
`select`, `read_vllm_states`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
