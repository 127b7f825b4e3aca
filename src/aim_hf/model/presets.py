"""Named model sizes: the fields of [`AIMConfig`] that differ from its defaults.

A preset named after a released video model has the sizes that `from_wan` gives that model.
"""

# Two CPU cores can train it: a chunk is 4 RGB frames and 8 actions.
TINY = {
    "patch_size": (1, 1, 1),
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "in_channels": 96,
    "out_channels": 96,
    "text_dim": 64,
    "freq_dim": 64,
    "ffn_dim": 480,
    "num_layers": 5,
    "action_hidden_size": 96,
    "action_ffn_dim": 384,
    "chunk_latent_frames": 1,
    "actions_per_latent_frame": 8,
    "history_chunks": 1,
}
PRESETS = {
    "tiny": TINY,
    # For robots with 50 control steps a second instead of 12.5: a chunk of 32 actions lasts as long.
    "tiny-50hz": TINY | {"actions_per_latent_frame": 32},
    # Wan2.1-T2V-1.3B's video stream with a 0.45 B action head, otherwise as below. Its VAE's cells are 8 x 8 pixels,
    # so a canvas has four times the tokens.
    "wan2.1-t2v-1.3b": {
        "num_attention_heads": 12,
        "in_channels": 16,
        "out_channels": 16,
        "ffn_dim": 8960,
        "history_chunks": 3,
    },
    # Wan2.2-TI2V-5B's video stream with a 0.64 B action head: a chunk is 8 RGB frames and 32 actions. The history is
    # as long as training sees it: the last chunk of a window of 4 attends to 3 whole ones.
    "wan2.2-ti2v-5b": {"history_chunks": 3},
}
