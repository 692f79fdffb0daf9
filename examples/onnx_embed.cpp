// Embed wav files with an exported model, in C++17.
//
//   patchifier export --onnx model.onnx         once, where torch is
//   ffmpeg -i song.mp3 -ar 22050 -ac 1 song.wav
//   export ORT_DISABLE_TELEMETRY=1              or onnxruntime would send events to its maker
//   c++ -std=c++17 -O2 onnx_embed.cpp -I ORT/include -L ORT/lib -lonnxruntime -o onnx_embed
//   ./onnx_embed model.onnx song.wav            prints a line of JSON for each file
//
// ORT is the folder of a release of ONNX Runtime, with headers and library.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

constexpr uint32_t kSampleRate = 22050;  // of patchifier-base and patchifier-paper

// A number of a little-endian file, on a little-endian machine.
template <typename Number>
Number Read(const std::vector<char>& bytes, size_t at) {
  Number number;
  if (at + sizeof(number) > bytes.size()) throw std::runtime_error("ends too early");
  std::memcpy(&number, bytes.data() + at, sizeof(number));
  return number;
}

// Mean of the channels of samples from `start` on: 16-bit integers or 32-bit floats.
std::vector<float> Mono(const std::vector<char>& bytes, size_t start, size_t size, size_t format) {
  const auto channels = Read<uint16_t>(bytes, format + 2), bits = Read<uint16_t>(bytes, format + 14);
  const auto rate = Read<uint32_t>(bytes, format + 4);
  if (rate != kSampleRate) throw std::runtime_error(std::to_string(rate) + " Hz, expected 22050: ffmpeg -i IN -ar 22050 OUT.wav");
  if (bits != 16 && bits != 32) throw std::runtime_error(std::to_string(bits) + " bits, expected 16-bit integers or 32-bit floats");
  const size_t width = bits / 8, frame = channels * width;
  if (frame == 0 || size < frame) throw std::runtime_error("a wav file without samples");
  std::vector<float> samples(size / frame);
  for (size_t n = 0; n < samples.size(); ++n) {
    double sum = 0;
    for (size_t c = 0; c < channels; ++c) {
      const size_t at = start + n * frame + c * width;
      sum += bits == 16 ? Read<int16_t>(bytes, at) / 32768.0 : Read<float>(bytes, at);
    }
    samples[n] = static_cast<float>(sum / channels);
  }
  return samples;
}

std::vector<float> ReadWav(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot be read");
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const std::string text(bytes.begin(), bytes.end());
  const bool wav = bytes.size() >= 12 && text.compare(0, 4, "RIFF") == 0 && text.compare(8, 4, "WAVE") == 0;
  if (!wav) throw std::runtime_error("not a wav file");
  size_t format = 0;
  for (size_t at = 12; at + 8 <= bytes.size();) {
    const size_t size = Read<uint32_t>(bytes, at + 4);
    if (text.compare(at, 4, "fmt ") == 0) format = at + 8;
    if (text.compare(at, 4, "data") == 0 && format) return Mono(bytes, at + 8, std::min(size, bytes.size() - at - 8), format);
    at += 8 + size + size % 2;
  }
  throw std::runtime_error("a wav file without samples");
}

std::vector<float> Embed(Ort::Session& session, std::vector<float> waveform) {
  const int64_t shape[] = {1, static_cast<int64_t>(waveform.size())};
  const char *input = "waveform", *output = "embedding";
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto value = Ort::Value::CreateTensor<float>(memory, waveform.data(), waveform.size(), shape, 2);
  const auto found = session.Run(Ort::RunOptions{nullptr}, &input, &value, 1, &output, 1);
  const float* numbers = found[0].GetTensorData<float>();
  return {numbers, numbers + found[0].GetTensorTypeAndShapeInfo().GetElementCount()};
}

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char letter : text) quoted += letter == '"' || letter == '\\' ? std::string{'\\', letter} : std::string{letter};
  return quoted + '"';
}

int main(int count, char** words) {
  if (count < 3) return std::fprintf(stderr, "usage: onnx_embed model.onnx song.wav ...\n"), 2;
  int code = 0;
  try {
    Ort::Env environment;
    Ort::Session session(environment, words[1], Ort::SessionOptions{nullptr});
    for (int n = 2; n < count; ++n) try {
      const auto vector = Embed(session, ReadWav(words[n]));
      std::printf("{\"path\":%s,\"embedding\":[", Quoted(words[n]).c_str());
      for (size_t k = 0; k < vector.size(); ++k) std::printf(k ? ",%.9g" : "%.9g", vector[k]);
      std::printf("]}\n");
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", words[n], error.what());
      code = 1;
    }
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s: %s\n", words[1], error.what()), 1;
  }
  return code;
}
