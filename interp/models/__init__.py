"""Chat models with named sites: loading by name, blocks and sites, chat templates as tokens with roles.

`ChatModel` is the only class that knows module paths.
Never decides what to measure; never downloads by itself.

Hands out:
`Block`, `Writer`, `ChatModel`, `load`, `with_adapter`, `with_delta`, `copy_with_delta`, `render_conversation`,
`template_of`, `cache_folder`, `convert_gguf`, `layer_list`, `written_layers`, `adapter_digest`, `attach_adapter`,
`load_checkpoint`, `quiet_peft`, `GatheredPrompts`, `PromptIdentity`, `gather_prompts`, `site_list`, `ModelSource`,
`split_revision`, `in_this_thread`, `on_behalf_of`, `swapped_forwards`, `this_thread`, `ChatTokens`, `as_tokens`,
`tokenize`, `ReferenceWeights`, `reference_weights`, `WeightChange`, `WeightDelta`, `read_delta`, `write_delta`,
`SystemSlot`, `system_slot`, `copy_with_weights`, `with_weights`, `with_precision`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
