from aim_hf.pipeline_aim import AIMPipeline  # noqa: F401
