from aim_hf.pipeline.pipeline_aim import AIMPipeline  # noqa: F401
