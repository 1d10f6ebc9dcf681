"""Methods: one LightningModule per file. ``offline_meta_rl.methods.macaw.Macaw`` and so on."""
