"""Make a tiny random Qwen2 checkpoint that real engines can serve on a CPU, without a model hub.

usage: python make_tiny_model.py OUT_DIR        (needs torch, transformers, tokenizers; about 15 s)

Trains a 4,096-token byte-level BPE on Python's standard library, adds ChatML special tokens and template, and saves a
Qwen2 model with random weights (hidden 128, 2 layers, head_dim 32: a size vLLM's CPU attention accepts; 3.3 MB).
"""

import sys
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

out = sys.argv[1]
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.train(
    [str(path) for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:150]],
    trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ),
)
fast = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    eos_token="<|im_end|>",
    pad_token="<|endoftext|>",
    additional_special_tokens=SPECIAL[:2],
    model_max_length=8192,
)
fast.chat_template = CHATML
fast.save_pretrained(out)
torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=len(fast),
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8192,
    bos_token_id=fast.convert_tokens_to_ids("<|endoftext|>"),
    eos_token_id=fast.convert_tokens_to_ids("<|im_end|>"),
    tie_word_embeddings=True,
)
Qwen2ForCausalLM(config).float().save_pretrained(out)
