"""Trains the tiny text encoder: a small UMT5 encoder and its tokenizer, on the instructions of a dataset.

Notable choices:
- The classes are those of Wan2.2's text encoder; only the sizes differ.
- The tokenizer is byte-pair encoding of lower-case text, with every printable ASCII character in its alphabet: an
  unseen word is spelled out and never unknown. Training spells some words out too, so that letters have learned
  embeddings. (The BPE dropout of `tokenizers` takes no seed.)
- The encoder learns to predict masked tokens of varied instructions. Its output layer is the embedding table.
"""

import random
import string
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from ..utils.checks import check_number, check_whole

PAD, END, UNKNOWN, MASK = "<pad>", "</s>", "<unk>", "<extra_id_0>"
SPELLING_RATE = 0.05  # share of words that are spelled out in training
MASK_RATE = 0.25  # share of tokens that are masked in training


def train_tokenizer(
    instructions: Sequence[str], vocab_size: int = 400, max_length: int = 64
) -> PreTrainedTokenizerFast:
    """A T5-style tokenizer: pieces with a leading space mark, `</s>` at the end, then `<pad>`, and one mask token.

    Raises:
        ValueError: without instructions.
    """
    if not instructions:
        raise ValueError("there are no instructions to train a tokenizer on; expected at least one.")
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, UNKNOWN, MASK],
        initial_alphabet=sorted(set(string.printable.lower()) - set(string.whitespace)),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(instructions)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        mask_token=MASK,
        model_max_length=max_length,
    )


def tiny_text_encoder(vocab_size: int, width: int = 64) -> UMT5EncoderModel:
    """A UMT5 encoder of two layers. The tokenizer's `<pad>` is token 0 and `</s>` token 1, as in T5."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size,
            d_model=width,
            d_kv=16,
            d_ff=2 * width,
            num_layers=2,
            num_heads=width // 16,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def vary(instruction: str, rng: random.Random) -> str:
    """A random variation of an instruction: with words dropped, "please" added, or other punctuation."""
    words = instruction.rstrip(".").split()
    kept = [word for word in words if rng.random() > 0.1] or words
    opening, ending = rng.choice(["", "", "", "please "]), rng.choice(["", ".", ".", "!"])
    return opening + " ".join(kept) + ending


def spell(instruction: str, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> list[int]:
    """Token ids of an instruction, with some words spelled out letter by letter."""
    backend = tokenizer.backend_tokenizer
    ids = []
    for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(instruction)):
        if rng.random() < SPELLING_RATE:
            ids += [backend.token_to_id(letter) for letter in word]
        else:
            ids += [token.id for token in backend.model.tokenize(word)]
    return [*ids, tokenizer.eos_token_id]


def train_text_encoder(
    encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    instructions: Sequence[str],
    steps: int = 1500,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> float:
    """Trains on masked tokens of varied instructions; returns the accuracy on the masked tokens of the last 100 steps.

    Raises:
        ValueError: for a number out of range.
    """
    for name, number in (("steps", steps), ("batch_size", batch_size)):
        check_whole(name, number)
    check_number("learning_rate", learning_rate, least=0)
    corpus = sorted(set(instructions))
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=learning_rate, weight_decay=0.01)
    # Up to 20 steps have no warm-up: OneCycleLR divides by zero for one of a single step.
    warmup = 0.05 if steps > 20 else 0.0
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=warmup)
    encoder.train()
    correct, masked = [], []  # numbers of tokens, of each step
    with tqdm(range(steps), desc="text encoder", unit="step") as progress:
        for step in progress:
            texts = [vary(text, rng) for text in rng.choices(corpus, k=batch_size)]
            rows = [torch.tensor(spell(text, tokenizer, rng)) for text in texts]
            ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
            attention = (ids != tokenizer.pad_token_id).long()
            is_masked = (torch.rand(ids.shape, generator=generator) < MASK_RATE) & (ids > tokenizer.eos_token_id)
            inputs = ids.masked_fill(is_masked, tokenizer.mask_token_id)
            features = encoder(inputs, attention_mask=attention).last_hidden_state[is_masked]
            logits = features @ encoder.shared.weight.T * encoder.config.d_model**-0.5
            loss = F.cross_entropy(logits, ids[is_masked])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            correct.append((logits.argmax(dim=-1) == ids[is_masked]).sum().item())
            masked.append(int(is_masked.sum()))
            if step % 50 == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{correct[-1] / max(1, masked[-1]):.2f}")
    encoder.eval()
    return sum(correct[-100:]) / max(1, sum(masked[-100:]))
