# `make setup` builds .venv once; every other target needs it and costs no set-up the second time. The output of apt
# and pip goes to a log, and is shown when something fails.
PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/.setup-done
QUIETLY := @bash scripts/quietly.sh outputs/setup.log
AIM := $(VENV)/bin/aim-hf
PYTEST := -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

.PHONY: setup demo app space test test-floor test-lerobot robotwin test-robotwin lint dataset-sample episodes latents \
	train-tiny train-tiny-stage1 train-click-bell train-aloha train-aloha-episodes \
	train-aloha-latents train-robotwin-mini report-robotwin-mini

setup: $(STAMP)

# torch goes first and pinned: a later line that merely asks for "torch" must find it there already, or pip may take
# the newest build with gigabytes of CUDA libraries. The check runs last, so a set-up that can't render leaves no stamp.
# openpi-client, which the server's tests are driven by, asks for numpy < 2 and runs with 2: it lies apart.
$(STAMP): pyproject.toml constraints.txt scripts/setup_system.sh
	$(QUIETLY) "System packages: ffmpeg, Mesa (usually under a minute)" env PYTHON=$(PYTHON) bash scripts/setup_system.sh
	$(QUIETLY) "Virtual environment $(VENV)" $(PYTHON) -m venv $(VENV)
	$(QUIETLY) "PyTorch (usually under a minute)" $(VENV)/bin/python -m pip install --constraint constraints.txt torch
	$(QUIETLY) "The project and what it needs (usually one to two minutes)" \
		$(VENV)/bin/python -m pip install --constraint constraints.txt --editable ".[dev]"
	$(QUIETLY) "A client for the server's tests" \
		$(VENV)/bin/python -m pip install --no-deps --upgrade --target $(VENV)/openpi openpi-client==0.1.2
	@$(AIM) check
	@touch $@

demo: setup
	@$(AIM) demo --output_dir outputs/demo

# Prints the address to open.
app: setup
	@$(AIM) app

# The folder of a Hugging Face Space that runs the app; `aim-hf publish` sends it.
space: setup
	@$(VENV)/bin/python scripts/make_space.py outputs/space

test: setup
	$(QUIETLY) "Chromium, for the tests of the page" env PYTHON=$(PYTHON) bash scripts/setup_system.sh chromium
	$(VENV)/bin/python $(PYTEST)

# The same tests with the oldest versions that are supported, in one environment with lerobot and its policies' extras.
# It downloads 4.7 GB: PyPI has no CPU build of that torch.
PYTHON_FLOOR ?= python3.12
FLOOR := .venv-floor
$(FLOOR)/.setup-done: pyproject.toml constraints-floor.txt scripts/setup_system.sh
	$(QUIETLY) "System packages" env PYTHON=$(PYTHON_FLOOR) bash scripts/setup_system.sh chromium
	$(QUIETLY) "Virtual environment $(FLOOR)" $(PYTHON_FLOOR) -m venv $(FLOOR)
	$(QUIETLY) "The oldest versions, and lerobot (usually five minutes)" $(FLOOR)/bin/python -m pip install \
		--constraint constraints-floor.txt --editable ".[dev]" \
		"lerobot[dataset,training,diffusion,peft,fastwam,lingbot-va]"
	$(QUIETLY) "A client for the server's tests" \
		$(FLOOR)/bin/python -m pip install --no-deps --upgrade --target $(FLOOR)/openpi openpi-client==0.1.2
	@$(FLOOR)/bin/python -m pip check
	@touch $@

test-floor: $(FLOOR)/.setup-done
	$(FLOOR)/bin/python $(PYTEST)

# The plug-ins of LeRobot, in the environment that has lerobot. LeRobot finds plug-ins by their distributions' names.
PLUGINS = plugins/lerobot_policy_aim plugins/lerobot_env_aim
test-lerobot: $(FLOOR)/.setup-done
	$(QUIETLY) "The plug-ins of LeRobot, and gRPC for its asynchronous server" sh -c \
		'$(FLOOR)/bin/python -m pip install --constraint constraints-floor.txt "lerobot[async]" && \
		$(FLOOR)/bin/python -m pip install --no-deps $(PLUGINS:%=--editable %)'
	HF_HUB_OFFLINE=1 $(FLOOR)/bin/python $(PYTEST) $(PLUGINS:%=%/tests)

# RoboTwin's own code, in an environment of its own, and stand-ins for its assets: neither a GPU nor a download of
# assets is needed. The runtime asks for versions that need CUDA, so it is installed without its dependencies.
ROBOTWIN := .venv-robotwin
ROBOTWIN_ASSETS := outputs/robotwin-assets
$(ROBOTWIN)/.setup-done: requirements-robotwin.txt constraints.txt
	$(QUIETLY) "Virtual environment $(ROBOTWIN)" $(PYTHON) -m venv $(ROBOTWIN)
	$(QUIETLY) "PyTorch (usually under a minute)" $(ROBOTWIN)/bin/python -m pip install --constraint constraints.txt torch
	$(QUIETLY) "What RoboTwin imports (usually under a minute)" \
		$(ROBOTWIN)/bin/python -m pip install --requirement requirements-robotwin.txt
	$(QUIETLY) "RoboTwin" $(ROBOTWIN)/bin/python -m pip install --no-deps rlinf-robotwin-runtime==0.1.3
	@touch $@

robotwin: setup $(ROBOTWIN)/.setup-done
	@$(VENV)/bin/python scripts/make_robotwin_assets.py $(ROBOTWIN_ASSETS)

test-robotwin: robotwin
	$(VENV)/bin/python $(PYTEST) tests/envs/test_robotwin_runtime.py tests/envs/test_robotwin_annotation.py

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The steps that make a checkpoint; each one is resumable, and one that is done costs nothing.
# On a machine with another number of cores or GPUs, PROCESSES is what changes.
PROCESSES ?= 2
LAUNCH = OMP_NUM_THREADS=1 $(VENV)/bin/accelerate launch $(if $(filter-out 1,$(PROCESSES)),--multi_gpu) \
	--num_processes $(PROCESSES) --num_cpu_threads_per_process 1
# bfloat16 pays on a CPU only where it has instructions for it; compiling needs a C++ compiler.
CPU_FLAGS = --use_cpu $(if $(shell grep -m1 avx512_bf16 /proc/cpuinfo),--bf16)
DEVICE ?= $(if $(shell command -v nvidia-smi),--bf16,$(CPU_FLAGS))
SUITE = tabletop
PRESET = tiny
# Fields of AIMConfig that differ from the preset, as JSON, more options of `aim-hf train`, and where that model goes.
# `JUDGED=` leaves the evaluation out. The ablation of the value maps:
#     make train-tiny-stage1 CONFIG='{"action_lookahead_frames": 1, "visibility": "observations"}' MODEL=observations-only
CONFIG = {}
MODEL ?= model
COMPILE ?= $(if $(shell command -v g++),--compile_blocks)
OPTIONS =
# Options of collect, train-text-encoder, train-vae and evaluate, and the splits to evaluate.
COLLECT =
TEXT = --max_text_length 32
VAE =
EVALUATE = --episodes 50
JUDGED = $(SPLITS)

# The checkpoint that ships. The expert fails once in three of ten episodes, and recovers. The actions see the map alone;
# in the last third of stage 1 it is often one that the model imagines. A touch of a switch has an eighth of the windows
# of a row of cubes, so windows are balanced.
TINY = train-tiny train-tiny-stage1
$(TINY): RUN = runs/aim-tiny
$(TINY): SPLITS = easy hard
$(TINY): TASKS = click_bell place_a2b_left place_a2b_right stack_blocks_two lift_pot handover_block press_stapler \
	turn_switch move_pillbottle_pad pick_dual_bottles stack_blocks_three blocks_ranking_rgb
train-tiny-stage1: CONFIG = {"action_lookahead_frames": 1}
train-tiny-stage1: OPTIONS = --balance_tasks --committed_probability 0.3 --prompt_dropout 0.1 \
	--imagined_value_probability 0.5 --imagined_value_start $(shell expr $(STEPS) \* 2 / 3)
train-tiny-stage1: COLLECT = --mistakes 0.3
train-tiny-stage1: EPISODES = 600
train-tiny-stage1: STEPS = 10000
train-tiny-stage1: VAE_STEPS = 4000
train-tiny-stage1: JUDGED =
train-click-bell: RUN = runs/click-bell
train-click-bell: SPLITS = easy
train-click-bell: TASKS = click_bell
train-click-bell: EPISODES = 800
train-click-bell: STEPS = 2400
train-click-bell: VAE_STEPS = 2500

# ALOHA's transfer cube: ARM=maps acts on value maps, half of them imagined in the last third; ARM=no-maps has none.
#     make train-aloha EPISODES=50 ARM=no-maps
ARM ?= maps
ALOHA = train-aloha train-aloha-episodes train-aloha-latents
$(ALOHA): RUN = runs/aloha/$(EPISODES)
$(ALOHA): SUITE = aloha
$(ALOHA): SPLITS = easy
$(ALOHA): TASKS = transfer_cube
$(ALOHA): EPISODES = 200
$(ALOHA): PRESET = tiny-50hz
$(ALOHA): VAE_STEPS = 2500
$(ALOHA): VAE = --frame_stride 8
train-aloha: STEPS = 4000
train-aloha: MODEL = $(ARM)
train-aloha: CONFIG = $(CONFIG_OF_$(ARM))
train-aloha: OPTIONS = --committed_probability 0.3 --prompt_dropout 0.1 $(OPTIONS_OF_$(ARM))
CONFIG_OF_maps = {"action_lookahead_frames": 1}
OPTIONS_OF_maps = --imagined_value_probability 0.5 --imagined_value_start $(shell expr $(STEPS) \* 2 / 3)
CONFIG_OF_no-maps = {"visibility": "observations", "value_loss_weight": 0, "action_lookahead_frames": 1}

# Part of the way, which `benchmarks/aloha.py` takes by itself.
train-aloha-episodes: episodes
train-aloha-latents: latents

# RoboTwin's own tasks and experts, with stand-ins for its assets unless the variables name others: org/aim-robotwin-mini.
# Pictures keep the proportions of RoboTwin's cameras, 4 to 3. The model without value maps, on as many samples:
#     make train-robotwin-mini CONFIG='{"visibility": "observations", "action_lookahead_frames": 1}' MODEL=observations
ROBOTWIN_MINI = train-robotwin-mini report-robotwin-mini
$(ROBOTWIN_MINI): export ROBOTWIN_PYTHON ?= $(ROBOTWIN)/bin/python
$(ROBOTWIN_MINI): export ROBOTWIN_ASSETS_ROOT ?= $(ROBOTWIN_ASSETS)
$(ROBOTWIN_MINI): export ROBOTWIN_SHADER ?= trivial
$(ROBOTWIN_MINI): export ROBOTWIN_PLANNER ?= cpu
$(ROBOTWIN_MINI): RUN = runs/robotwin-mini
$(ROBOTWIN_MINI): SPLITS = easy hard
train-robotwin-mini: SUITE = robotwin
train-robotwin-mini: TASKS = stack_blocks_two stack_blocks_three blocks_ranking_rgb blocks_ranking_size click_bell \
	place_a2b_left place_a2b_right handover_block
train-robotwin-mini: EPISODES = 150
train-robotwin-mini: TEXT = --max_text_length 64 --canvas 144 128
train-robotwin-mini: VAE_STEPS = 4000
train-robotwin-mini: VAE = --max_episodes 240
train-robotwin-mini: CONFIG = {"action_lookahead_frames": 1}
train-robotwin-mini: STEPS = 8000
train-robotwin-mini: OPTIONS = --committed_probability 0.3 --prompt_dropout 0.1 --imagined_value_probability 0.5 \
	--imagined_value_start 5000 --num_inference_steps 1 --num_action_inference_steps 4
train-robotwin-mini: EVALUATE = --episodes 100 --instructions unseen --batch_size 8

# These two have the variables of the target that needs them.
episodes: setup
	$(if $(filter robotwin,$(SUITE)),$(MAKE) robotwin)
	LP_NUM_THREADS=1 $(LAUNCH) -m aim_hf collect --suite $(SUITE) --splits $(SPLITS) --tasks $(TASKS) \
		--episodes $(EPISODES) $(COLLECT) --output_dir $(RUN)/episodes

latents: episodes
	test -d $(RUN)/base/text_encoder || OMP_NUM_THREADS=1 $(AIM) train-text-encoder --dataset $(RUN)/episodes \
		--policy $(RUN)/base $(TEXT)
	$(LAUNCH) -m aim_hf train-vae --dataset $(RUN)/episodes --policy $(RUN)/base --output_dir $(RUN)/vae \
		--steps $(VAE_STEPS) $(VAE)
	test -f $(RUN)/latents/index.json || $(LAUNCH) -m aim_hf encode-latents --preset $(PRESET) \
		--dataset $(RUN)/episodes --policy $(RUN)/base --output_dir $(RUN)/latents

STAGE1 = --per_device_train_batch_size 8 --num_action_draws 4 --lr_scheduler_type cosine --warmup_steps 60 \
	--adam_beta2 0.99 --weight_decay 0.01 $(DEVICE) $(COMPILE) \
	--logging_steps 25 --sample_steps 250 --save_steps 250 --save_total_limit 2

train-tiny-stage1 train-click-bell train-aloha train-robotwin-mini: latents
	$(LAUNCH) -m aim_hf train --latents $(RUN)/latents --policy $(RUN)/base --output_dir $(RUN)/$(MODEL) \
		--preset $(PRESET) --config '$(CONFIG)' --max_steps $(STEPS) --muon_learning_rate 0.03 --learning_rate 1.5e-3 \
		$(STAGE1) $(OPTIONS)
	set -e; for split in $(JUDGED); do \
		LP_NUM_THREADS=1 $(AIM) evaluate --policy $(RUN)/$(MODEL)/pipeline --suite $(SUITE) --split $$split \
			--tasks $(TASKS) $(EVALUATE) --output_dir $(RUN)/$(MODEL)/evaluation/$$split; done

# The results of that, ready to be published: the episodes are checked, and the success stands beside the paper's tables.
report-robotwin-mini: train-robotwin-mini
	$(AIM) validate $(RUN)/episodes
	$(AIM) publish $(RUN)/episodes org/aim-robotwin-mini-episodes
	$(VENV)/bin/python model_cards/render.py --card aim-robotwin-mini --folder $(RUN)/$(MODEL)/pipeline \
		--repo_id org/aim-robotwin-mini --datasets org/aim-robotwin-mini-episodes
	$(AIM) publish $(RUN)/$(MODEL)/pipeline org/aim-robotwin-mini
	$(AIM) report --results $(SPLITS:%=$(RUN)/$(MODEL)/evaluation/%) --output_dir $(RUN)/$(MODEL)/report

# Then at the times of one world step and four action steps alone, with which the pipeline then samples.
train-tiny: train-tiny-stage1
	$(LAUNCH) -m aim_hf train --latents $(RUN)/latents --policy $(RUN)/$(MODEL)/pipeline --output_dir $(RUN)/few \
		--balance_tasks --max_steps 12000 --muon_learning_rate 0.02 --learning_rate 1e-3 $(STAGE1) \
		--committed_probability 0.3 --prompt_dropout 0.1 --imagined_value_probability 0.5 \
		--num_inference_steps 1 --num_action_inference_steps 4
	set -e; for split in $(SPLITS); do \
		LP_NUM_THREADS=1 $(LAUNCH) -m aim_hf evaluate --policy $(RUN)/few/pipeline --split $$split \
			--tasks $(TASKS) --episodes 100 --output_dir $(RUN)/few/evaluation/$$split; done

# Ten episodes of every tabletop task, and a check of all of them.
dataset-sample: setup
	LP_NUM_THREADS=1 $(LAUNCH) -m aim_hf collect --suite tabletop --splits easy --episodes 10 \
		--output_dir outputs/dataset-sample
	$(AIM) validate outputs/dataset-sample
