"""Models: what they are made of, how a sample becomes tokens, and which one a run gets."""


class LLM:

  def __init__(self, model_name, temperature=0.9, top_p=0.9, max_length=32768, generation_max_length=2048,
               generation_min_length=0, do_sample=True, stop_newline=False, use_chat_template=False,
               system_message="You are a helpful assistant."):
    self.model_name, self.temperature, self.top_p = model_name, temperature, top_p
    self.max_length, self.generation_max_length = max_length, generation_max_length
    self.generation_min_length, self.do_sample = generation_min_length, do_sample
    self.use_chat_template, self.system_message = use_chat_template, system_message
    self.stops = ["\n", "\n\n"] if stop_newline else None

  def generate_batch(self, inputs=None, prompt=None, **kwargs):
    return [self.generate(inputs=each, **kwargs) for each in inputs]


def tokenize(sample, data, tokenizer, max_length, generation_max_length, use_chat_template=False, system_message=None):

  def formatted():
    if not use_chat_template:
      return tokenizer([data["prompt_template"].format(**sample)], return_tensors="np")
    chat = [{"role": "user", "content": data["user_template"].format(**sample)}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer([text], return_tensors="np", add_special_tokens=False)

  tokens = formatted()
  if (excess := tokens.input_ids.shape[1] - (max_length - generation_max_length)) > 0:
    offsets = tokenizer([sample["context"]], return_offsets_mapping=True)["offset_mapping"][0]
    sample["context"] = sample["context"][:offsets[-excess][0]]
    tokens = formatted()
  return tokens


class HFModel(LLM):

  def __init__(self, *arguments, **settings):
    raise NotImplementedError("weights")

  def prepare_inputs(self, test_item, data):
    return tokenize(test_item, data, tokenizer=self.tokenizer, max_length=self.max_length,
                    generation_max_length=self.generation_max_length, use_chat_template=self.use_chat_template,
                    system_message=self.system_message)


def load_LLM(args):
  return HFModel(args.model_name_or_path)
